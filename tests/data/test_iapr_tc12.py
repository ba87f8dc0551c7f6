"""IAPR TC-12 in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_image

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError

FORM = """<DOC>
<DOCNO>annotations/{place}.{suffix}</DOCNO>
<TITLE>{title}</TITLE>
<DESCRIPTION>{text}</DESCRIPTION>
<NOTES></NOTES>
<LOCATION>Cochabamba, Bolivia</LOCATION>
<DATE>1 February 2002</DATE>
<IMAGE>images/{place}.jpg</IMAGE>
<THUMBNAIL>thumbnails/{place}.jpg</THUMBNAIL>
</DOC>
"""


def write_annotation(root: Path, place: str, code: str, text: str, title: str = "") -> Path:
    suffix = {"en": "eng", "de": "ger"}[code]
    path = root / f"annotations_complete_{suffix}" / f"{place}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FORM.format(place=place, suffix=suffix, text=text, title=title).encode("latin-1"))
    return path


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    write_annotation(tmp_path, "00/25", "en", "a yellow building &amp; palms; two cars;\n a woman;", "Plaza de Armas")
    write_annotation(tmp_path, "00/25", "de", "ein gelbes Gebäude; zwei Autos;")
    write_annotation(tmp_path, "00/9", "de", "eine Straße")
    for place in ("00/25", "00/9"):
        write_image(tmp_path / f"images/{place}.jpg")
    return tmp_path


def test_one_record_an_image_in_both_languages(benchmark: Path) -> None:
    source = open_data({"source": "iapr_tc12", "root": benchmark})
    nine, first = records(source)
    assert first.captions == {
        "en": ("a yellow building & palms; two cars; a woman",),
        "de": ("ein gelbes Gebäude; zwei Autos",),
    }
    assert first.texts == {"en": ("Plaza de Armas",)}
    assert first.image is not None and first.image.path == str(benchmark / "images/00/25.jpg")
    assert (first.id, nine.id) == ("images/00/25.jpg", "images/00/9.jpg")
    assert nine.captions == {"de": ("eine Straße",)}
    assert source.languages == ("en", "de")


def test_descriptions_may_be_cut_at_their_clauses(benchmark: Path) -> None:
    first = open_data({"source": "iapr_tc12", "root": benchmark, "description": "first"})[1]
    assert first.captions == {"en": ("a yellow building & palms",), "de": ("ein gelbes Gebäude",)}
    each = open_data({"source": "iapr_tc12", "root": benchmark, "description": "clauses", "languages": "en"})[0]
    assert each.captions == {"en": ("a yellow building & palms", "two cars", "a woman")}


def test_images_are_optional_or_elsewhere(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (benchmark / "images").rename(elsewhere / "images")
    spec = {"source": "iapr_tc12", "root": benchmark}
    assert open_data(spec)[0].image is None
    found = open_data(spec, images=elsewhere)[0].image
    assert found is not None and found.path == str(elsewhere / "images/00/9.jpg")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("<DESCRIPTION>eine Straße</DESCRIPTION>", "<DESCRIPTION> </DESCRIPTION>", "has no <DESCRIPTION>"),
        ("eine Straße", " ; ;", "says nothing"),
        ("<IMAGE>images/00/9.jpg</IMAGE>", "", "has no <IMAGE>"),
        ("<IMAGE>images/00/9.jpg", "<IMAGE>../../etc/x.jpg", "lies elsewhere"),
    ],
)
def test_damaged_annotations_are_refused_or_skipped(benchmark: Path, old: str, new: str, why: str) -> None:
    path = benchmark / "annotations_complete_ger/00/9.ger"
    path.write_bytes(path.read_bytes().replace(old.encode("latin-1"), new.encode("latin-1")))
    with pytest.raises(DataError, match=rf"9.ger: .*{why}"):
        open_data({"source": "iapr_tc12", "root": benchmark})
    bad = BadRecords(skip=True)
    assert len(open_data({"source": "iapr_tc12", "root": benchmark}, report=bad)) == 1
    assert len(bad) == 1


def test_a_language_that_is_not_there(benchmark: Path) -> None:
    (benchmark / "annotations_complete_eng/00/25.eng").unlink()
    with pytest.raises(DataError, match="missing: annotations_complete_eng"):
        open_data({"source": "iapr_tc12", "root": benchmark})
    with pytest.raises(ConfigError, match="no language 'fr'"):
        open_data({"source": "iapr_tc12", "root": benchmark, "languages": "fr"})
