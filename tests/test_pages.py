"""The HTML report: one file, whole without network and scripts, in which names from strangers stay text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import gaussian, low_rank, smooth_kernels

import paramcompress
from paramcompress import anatomy, codec, pages, report_files, reporting
from paramcompress.container import Reader
from paramcompress.errors import CheckpointError, ConfigError, FormatError, OutputError, UnsupportedFormatError
from paramcompress.pages import CurvePoint
from paramcompress.records import Anatomy, LayerReport, Report, Spectrum

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&]]>\x1b[2J\u202e'
LAYER = LayerReport("fc", (4, 8), "float32", "factored", "lowrank", 2, 0.5, 3.0, 128, 12, 0.03, 0.1)
REPORT = Report("m.pt", "m.sq", "max_rel_error 0.03", 32, 128, 100, (LAYER,), ("a note",), {"level": 0.03}, True)
ANATOMY = Anatomy({"stored weights": 70, "index": 30}, (Spectrum("fc", (0.9, 0.3, 0.1), 4, 2),))
SWEEP = (CurvePoint(0.0, 120), CurvePoint(0.01, 110), CurvePoint(0.1, 60))
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags as a browser would see them, checked to be closed in order, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def hostile_page() -> str:
    layer = replace(LAYER, name=HOSTILE, dictionary=HOSTILE, dtype=HOSTILE, note=HOSTILE, tied_to=HOSTILE)
    report = replace(
        REPORT, output=HOSTILE, target=HOSTILE, layers=(layer,), notes=(HOSTILE,), settings={HOSTILE: HOSTILE}
    )
    return pages.render(report, Anatomy({HOSTILE: 3}, (Spectrum(HOSTILE, (0.5, 0.1), 2, 1),)), SWEEP)


def test_all_that_there_is_to_see() -> None:
    page = Page(pages.render(REPORT, ANATOMY, SWEEP))
    figures = ["Size", "Where the bytes go", "Largest layers", "Error", "Spectrum", "Bytes against error"]
    assert [words for words in page.words if words in figures] == [
        "Size", "Where the bytes go", "Where the bytes go", "Largest layers", "Error", "Spectrum",
        "Bytes against error", "Bytes against error",
    ]  # fmt: skip
    for words in ("128 B -> 100 B, 1.3x smaller", "measured on the decoded file", "a note", "rank 2 of 4", "this file"):
        assert words in page.text
    assert page.count("svg") == 6
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")


def test_what_is_not_known_is_left_out() -> None:
    page = Page(pages.render(replace(REPORT, layers=(), notes=(), verified=False)))
    assert page.count("figure") == 1
    assert "errors as the file states them" in page.text
    exact = replace(LAYER, codec="exact", rel_error=0.0)
    assert Page(pages.render(replace(REPORT, layers=(exact,)))).count("figure") == 2


def test_nothing_is_loaded_from_anywhere() -> None:
    text = pages.render(REPORT, ANATOMY, SWEEP)
    page = Page(text)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if {"src", "href", "srcset"} & attributes.keys()]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_names_from_strangers_stay_text() -> None:
    text = hostile_page()
    page = Page(text)
    plain = Page(pages.render(REPORT, ANATOMY, SWEEP))
    assert page.count("script") == plain.count("script") == 1
    assert page.count("img") == 0
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert '<script>document.title="owned"</script>' in page.text


def test_only_our_script_may_run() -> None:
    """The policy names the hash of the one script that stands in the page."""
    import base64
    import hashlib

    text = hostile_page()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text


def test_the_table_sorts_by_numbers_and_not_by_their_words() -> None:
    layers = tuple(replace(LAYER, name=str(n), bytes_after=n) for n in (999, 1000, 20_000))
    page = Page(pages.render(replace(REPORT, layers=layers)))
    keys = [attributes["data-key"] for tag, attributes in page.tags if tag == "td" and "data-key" in attributes]
    assert {"999", "1000", "20000"} < set(keys)
    firsts = [attributes["data-first"] for tag, attributes in page.tags if tag == "th"]
    assert firsts == ["ascending"] * 4 + ["descending"] * 6


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_sorts_the_table_and_runs_no_other_script(tmp_path: Path) -> None:
    layers = tuple(replace(LAYER, name=name, bytes_after=n) for name, n in (("b", 999), ("a", 20_000), (HOSTILE, 1)))
    text = pages.render(replace(REPORT, layers=layers))
    probe = """<script>
        for (const name of ["after", "layer"]) {
          [...document.querySelectorAll("th button")].find((one) => one.textContent === name).click();
          document.title += "/" + [...document.querySelectorAll("tbody tr")].map((row) => row.cells[8].textContent);
        }</script></body>"""
    (tmp_path / "as_it_is.html").write_text(text, encoding="utf-8")
    probed = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", probe)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")

    def title(name: str) -> str:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        done = subprocess.run(
            [*command, "--dump-dom", (tmp_path / name).as_uri()], capture_output=True, text=True, timeout=120
        )
        found = re.search("<title>(.*?)</title>", done.stdout)
        assert found is not None, done.stderr
        return found[1]

    assert title("as_it_is.html") == "m.sq: 100 B"
    assert title("probed.html") == "m.sq: 100 B/20.0 kB,999 B,1 B/1 B,20.0 kB,999 B"


@pytest.mark.parametrize(
    "sweep", [(CurvePoint(0.0, 5),), (CurvePoint(0.03, 0),), (CurvePoint(0.1, 7), CurvePoint(0.1, 7)), SWEEP]
)
def test_every_curve_can_be_drawn(sweep: tuple[CurvePoint, ...]) -> None:
    text = pages.render(replace(REPORT, bytes_before=0, bytes_after=0), None, sweep)
    assert "nan" not in text.lower().replace("tab", "")
    Page(text)


# ---- what a file is made of


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(3)
    state = {
        "rank": low_rank(rng, 300, 200, 4),
        "kernels": smooth_kernels(rng, 32, 16, 5, 5),
        "white": gaussian(rng, 30, 20),
        "exact": torch.arange(5000),
        "zero": torch.zeros(9, 9),
        "bias": gaussian(rng, 7),
        "shift": gaussian(rng, 40),
    }
    settings: dict[str, dict[str, object]] = {
        "shift": {"max_rel_error": 0.1},
        "rank": {"rank": 4, "dictionary": "lowrank"},
        "kernels": {"dictionary": "patch"},
    }
    paramcompress.squeeze(state, folder / "net.squeezed.safetensors", layers=settings)
    return folder / "net.squeezed.safetensors"


def test_sections_add_up_to_the_file(squeezed: Path) -> None:
    found = anatomy.examine(squeezed).sections
    assert sum(found.values()) == squeezed.stat().st_size
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert min(found.values()) > 0
    index = found["index, names, checksums"]
    layers = {layer.name: layer.bytes_after for layer in paramcompress.inspect(squeezed).layers}
    assert found["dictionary"] > 625  # the 25 x 25 basis of the kernels, and the atoms of the low-rank layer
    assert found["coefficients"] + found["dictionary"] - 625 < layers["rank"]
    assert index < 1500


def test_every_kind_of_bytes_has_a_colour(squeezed: Path) -> None:
    """In both schemes, and a class that fills with it; what has none is black."""
    style = (Path(anatomy.__file__).parent / "pages" / "style.css").read_text(encoding="utf-8")
    for place in range(len(anatomy.examine(squeezed).sections)):
        assert style.count(f"--part{place}: #") == 2
        assert f".part{place} {{ fill: var(--part{place}); }}" in style


def test_sections_of_a_stream_add_up_and_are_what_is_in_it(squeezed: Path) -> None:
    with Reader(squeezed) as reader:
        for name, entry in reader.entries.items():
            if entry.codec != codec.FACTORED:
                continue
            stream = reader.stream(entry)
            found = codec.section_bytes(stream, entry.shape)
            factors = codec.decode_factored(stream, entry.shape)
            assert sum(found.values()) == len(stream)
            assert (found["stored"] > 0) is (factors.stored is not None)
            assert (found["coefficients"] > 0) is (factors.low_rank is not None) is (name == "rank")
            assert (found["dictionary"] > 0) is (factors.dictionary not in ("none", "cosine"))


def test_spectra_are_those_of_the_decoded_matrices(squeezed: Path) -> None:
    spectra = {one.name: one for one in anatomy.examine(squeezed).spectra}
    weights = paramcompress.load_file(squeezed)
    assert set(spectra) == {"rank", "kernels", "white", "zero"}
    assert (spectra["rank"].rank, spectra["rank"].n_all) == (4, 200)
    assert spectra["zero"].values == ()
    for name in ("rank", "white"):
        exact = torch.linalg.svdvals(weights[name].double())
        found = torch.tensor(spectra[name].values, dtype=torch.float64)
        expected = exact[: len(found)] / weights[name].double().norm()
        assert len(found) == min(anatomy.VALUES, len(exact))
        # within 1 % of the norm, which the randomised method keeps on such matrices (test_dictionaries.py)
        assert float((found - expected).abs().max()) < 0.01 * float(expected[0])


# ---- reports of what is there already


def test_a_report_of_a_squeezed_file(squeezed: Path, tmp_path: Path) -> None:
    for name in ("r.html", "r.md", "r.json"):
        reporting.make(squeezed, tmp_path / name)
    page = Page((tmp_path / "r.html").read_text())
    assert page.count("figure") == 5
    assert json.loads((tmp_path / "r.json").read_text())["layers"][0]["name"] == "rank"
    assert "| `rank` |" in (tmp_path / "r.md").read_text()
    assert reporting.default_output(squeezed) == squeezed.with_name("net.report.html")


def test_a_report_of_a_report_is_the_same(squeezed: Path, tmp_path: Path) -> None:
    reporting.make(squeezed, tmp_path / "a.json")
    assert report_files.read_report(tmp_path / "a.json") == paramcompress.inspect(squeezed)
    reporting.make(tmp_path / "a.json", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    reporting.make(tmp_path / "a.json", tmp_path / "a.html")
    assert Page((tmp_path / "a.html").read_text()).count("figure") == 3


def test_sweeps_in_both_their_forms(tmp_path: Path, rng: np.random.Generator) -> None:
    from paramcompress import report

    found = paramcompress.sweep({"w": gaussian(rng, 30, 30)}, levels=[0.0, 0.1], effort="fast")
    (tmp_path / "s.json").write_text(report.to_json(found))
    (tmp_path / "s.csv").write_text(report.to_csv(found))
    expected = tuple(CurvePoint(point.max_rel_error, point.bytes_after) for point in found.points)
    assert report_files.read_sweep(tmp_path / "s.json") == report_files.read_sweep(tmp_path / "s.csv") == expected


@pytest.mark.parametrize("text", ["", "{}", "[]", "a,b\n1,2\n", '{"schema": 1}', "\x00", "[" * 100_000])
def test_what_is_no_report_and_no_sweep_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    for read in (report_files.read_report, report_files.read_sweep):
        with pytest.raises(FormatError, match=re.escape(f"{path}: not a ")) as caught:
            read(path)
        assert "writes one" in (caught.value.hint or "")


def test_a_newer_report_is_refused_as_newer(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema": 2}')
    with pytest.raises(UnsupportedFormatError, match="JSON layout 2 is not known here"):
        report_files.read_report(path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        report_files.read_sweep(tmp_path / "absent")


def test_nothing_is_overwritten_unasked(squeezed: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        reporting.make(squeezed, out)
    with pytest.raises(ConfigError, match=r"no report format has suffix '\.pdf'"):
        reporting.make(squeezed, tmp_path / "r.pdf")
    reporting.make(squeezed, tmp_path / "a.json")
    with pytest.raises(OutputError, match="is what is being read"):
        reporting.make(tmp_path / "a.json", tmp_path / "a.json", force=True)
    assert out.read_text() == "mine"
