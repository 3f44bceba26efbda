"""Four small trained checkpoints, and the code that trained and measures them. See README.md."""
