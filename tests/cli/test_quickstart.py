"""`mmbert quickstart`: the folder that it writes, and one whole run with a small model in the starter's place."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pages import Page, outside_references

from mmbert import MMBert
from mmbert.api import loading
from mmbert.cli import quickstart
from mmbert.cli.main import run
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.data.sources.starter import LANGUAGES, STYLES
from mmbert.evaluation.retrieval import evaluate_retrieval
from mmbert.search.index import SearchIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quickstart") / "pictures"
    quickstart.write_folder(made)
    return made


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    """The folder read again as any user's."""
    source = open_data(str(folder))
    return [source[i] for i in range(len(source))]


def groups(records: list[Record], split: str) -> set[str]:
    return {record.group for record in records if record.split == split}


def test_150_concepts_in_three_styles_a_third_of_them_held_back(records: list[Record]) -> None:
    assert (len(groups(records, "train")), len(groups(records, "test"))) == (100, 50)
    assert not groups(records, "train") & groups(records, "test")
    styles = defaultdict(set)
    for record in records:
        styles[record.group].add(record.extra["style"])
    assert len(records) == 450
    assert all(found == set(STYLES) for found in styles.values())


def test_captions_are_those_of_the_corpus_in_24_languages(records: list[Record]) -> None:
    corpus = open_data("starter:heldout_concepts")
    said = {corpus[i].id.replace("/", "-"): corpus[i] for i in range(len(corpus))}
    assert len(said) == 450
    for record in records:
        original = said[Path(record.image.path).stem]
        assert record.captions == original.captions
        assert Path(record.image.path).read_bytes() == original.image.data
    assert {language for record in records for language in record.captions} == set(LANGUAGES)


def test_the_starter_has_seen_none_of_the_concepts(records: list[Record]) -> None:
    corpora = [open_data(f"starter:{split}") for split in ("train", "validation")]
    seen = {corpus[i].group for corpus in corpora for i in range(len(corpus))}
    assert len(seen) > 1000
    assert not seen & {record.group for record in records}


def test_the_check_finds_nothing_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert (found["images"], found["splits"]) == (450, {"test": 150, "train": 300})


def test_written_again_it_is_the_same(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    quickstart.write_folder(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A short run with a model of random weights and without network; its folder and its JSON."""

    def refuse(*_: object) -> None:
        raise OSError("no network here")

    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setitem(loading.SHIPPED, "starter", model_folder)
        patch.setattr(quickstart, "RERANK", 2)
        patch.setattr(socket.socket, "connect", refuse)
        assert run(["quickstart", "--out", str(out), "--epochs", "0.2", "--json"]) == 0
    return out, json.loads(printed.getvalue())


@pytest.mark.slow
def test_json_compares_before_and_after_on_the_held_back_concepts(finished: tuple[Path, dict[str, Any]]) -> None:
    out, answer = finished
    assert answer.keys() == {"before", "after", "queries", "seconds", "report", "model"}
    for report in (answer["before"], answer["after"]):
        for figures in report.values():
            assert figures.keys() == {"mean", *LANGUAGES}
            assert all(0 <= language["R@1"] <= language["R@10"] <= 1 for language in figures.values())
    assert answer["before"] != answer["after"], "training changed nothing"
    assert answer["model"] == str(out / "run" / "last")
    model = MMBert.from_pretrained(answer["model"], device="cpu")
    source = open_data(f"{out / 'pictures'}:test")
    again = evaluate_retrieval(model, [source[i] for i in range(len(source))], mode="rerank", rerank=2)
    stated = answer["after"]["text_to_image"]["mean"]["R@10"]
    assert again["text_to_image"]["mean"]["R@10"] == pytest.approx(stated, abs=1e-3)


@pytest.mark.slow
def test_one_query_in_each_of_five_scripts_about_held_back_concepts(finished: tuple[Path, dict[str, Any]]) -> None:
    out, answer = finished
    source = open_data(f"{out / 'pictures'}:test")
    said = {
        (lang, text): r
        for r in map(source.__getitem__, range(len(source)))
        for lang in r.captions
        for text in r.captions[lang]
    }
    asked = [said[query["language"], query["query"]] for query in answer["queries"]]
    assert [query["language"] for query in answer["queries"]] == ["de", "ru", "ar", "hi", "ja"]
    assert len({record.group for record in asked}) == 5
    for query, record in zip(answer["queries"], asked, strict=True):
        assert query["english"] in record.captions["en"]
        assert query["place"] is None or 1 <= query["place"] <= 10
        assert query["place"] != 1 or query["found"][0] == query["english"]
    assert SearchIndex.open(out / "index").count() == 450


@pytest.mark.slow
def test_the_report_is_one_file_with_the_comparison_and_the_queries(finished: tuple[Path, dict[str, Any]]) -> None:
    out, answer = finished
    assert answer["report"] == str(out / "report.html")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert outside_references(text) == []
    page = Page(text)
    assert page.all("title")[0][1] == "mmbert quickstart"
    assert len(page.all("article", "query")) == 5
    pictures = [attrs["src"] or "" for attrs, _ in page.all("img")]
    assert len(pictures) == 5 * 5
    assert all(source.startswith("data:image/") for source in pictures)
    for query in answer["queries"]:
        assert query["query"] in text
    assert "starter" in text
    assert "fine-tuned" in text


@pytest.mark.slow
def test_people_get_tables(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, answer = finished
    quickstart._print_recall(answer["before"], answer["after"])
    rows = {line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines() if "→" in line}
    assert rows.keys() >= {"mean", *LANGUAGES}
    first, last = (100 * answer[when]["text_to_image"]["de"]["R@1"] for when in ("before", "after"))
    assert rows["de"] == [f"{first:.0f}", "→", f"{last:.0f}"]
    quickstart._print_queries(answer["queries"])
    printed = capsys.readouterr().out
    assert all(query["query"] in printed for query in answer["queries"])


@pytest.mark.slow
def test_everything_made_lies_in_the_folder(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    assert sorted(path.name for path in out.iterdir()) == ["index", "pictures", "report.html", "run"]
