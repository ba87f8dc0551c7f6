"""Region stores: what goes in comes out, whatever is damaged is noticed, and a killed extraction goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CLASSES, extract_pictures, layout, make_store, regions_of, save_pictures

from mmbert.data.records import BadRecords
from mmbert.errors import DataError
from mmbert.vision.regions import Regions
from mmbert.vision.store import RegionStore
from mmbert.vision.store_build import BuildReport, StoreBuilder
from mmbert.vision.store_shards import shard_bytes


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def images() -> dict[str, Regions]:
    return {f"a/{i}.jpg": regions_of(i) for i in range(8)}


@pytest.fixture
def store(tmp_path: Path, images: dict[str, Regions]) -> RegionStore:
    return make_store(tmp_path / "store", images, top_k=CLASSES)


def test_fp32_with_all_classes_gives_back_what_was_stored(store: RegionStore, images: dict[str, Regions]) -> None:
    assert store.keys == list(images)
    for key, regions in images.items():
        found = store.regions(key)
        assert (found.size, found.encoder) == (regions.size, "test")
        for name in ("boxes", "features", "classes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(regions, name))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=9))
def test_a_batch_is_the_images_regions_one_after_the_other(
    store_of_eight: tuple[RegionStore, dict[str, Regions]], drawn: list[int]
) -> None:
    store, images = store_of_eight
    keys = [list(images)[i] for i in drawn]
    first_rows, table = store.table(keys)
    wanted = [images[key] for key in keys]
    assert first_rows == np.cumsum([0, *map(len, wanted)]).tolist()
    assert table.features is not None and table.features.dtype == torch.float32
    np.testing.assert_array_equal(table.features.numpy(), np.concatenate([r.features for r in wanted]))
    np.testing.assert_array_equal(table.boxes.numpy(), np.concatenate([r.boxes for r in wanted]))
    assert table.sizes.tolist() == [[80, 60]] * first_rows[-1]


@pytest.fixture(scope="module")
def store_of_eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[RegionStore, dict[str, Regions]]:
    images = {f"{i}.jpg": regions_of(i) for i in range(8)}
    return make_store(tmp_path_factory.mktemp("eight") / "store", images), images


@pytest.mark.parametrize(("dtype", "step"), [("fp16", 2**-11), ("int8", 0.5 / 127)])
def test_smaller_types_are_off_by_half_a_step_at_most(
    tmp_path: Path, images: dict[str, Regions], dtype: str, step: float
) -> None:
    store = make_store(tmp_path / dtype, images, dtype=dtype)
    for key, regions in images.items():
        scale = np.abs(regions.features).max(1, keepdims=True) if dtype == "int8" else np.abs(regions.features)
        assert (np.abs(store.regions(key).features - regions.features) <= scale * step * 1.01 + 1e-7).all()


def test_the_largest_shares_are_kept_and_the_rest_is_spread(tmp_path: Path, images: dict[str, Regions]) -> None:
    store = make_store(tmp_path / "sparse", images, top_k=2)
    for key, regions in images.items():
        kept, whole = store.regions(key).classes, regions.classes
        assert kept is not None and whole is not None
        for found, shares in zip(kept[1:], whole[1:], strict=True):
            best = sorted(range(CLASSES), key=lambda c: -shares[c])
            wanted = shares.copy()
            wanted[best[2:]] = shares[best[2:]].sum() / (CLASSES - 2)
            np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert not kept[0].any()


def test_regions_without_classes_have_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "plain", {"a": regions_of(0, classes=0)}, num_classes=0)
    assert store.regions("a").classes is None


def test_the_datasets_library_opens_shards(store: RegionStore, images: dict[str, Regions]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [row for p in sorted(Path(store.path, "shards").iterdir()) for row in datasets.Dataset.from_file(str(p))]
    assert [row["key"] for row in rows] == list(images)
    for row, regions in zip(rows, images.values(), strict=True):
        np.testing.assert_array_equal(np.array(row["features"], np.float32), regions.features)
        assert (row["width"], row["height"]) == regions.size


def test_other_file_systems_hold_the_same_bytes(store: RegionStore, images: dict[str, Regions]) -> None:
    import fsspec

    remote = make_store("memory://stores/one", images, top_k=CLASSES)
    np.testing.assert_array_equal(remote.regions("a/5.jpg").features, images["a/5.jpg"].features)
    remote.verify()
    there = fsspec.filesystem("memory")
    for name, data in content(Path(store.path)).items():
        assert there.cat_file(f"/stores/one/{name}") == data
    there.rm("/stores", recursive=True)


def test_a_store_is_appended_to(store: RegionStore, images: dict[str, Regions]) -> None:
    more = images | {f"b/{i}.jpg": regions_of(100 + i) for i in range(4)}
    before = content(Path(store.path) / "shards")
    grown = make_store(store.path, more, top_k=CLASSES)
    assert grown.keys == list(more)
    assert before.items() <= content(Path(store.path) / "shards").items()
    np.testing.assert_array_equal(grown.regions("b/3.jpg").features, more["b/3.jpg"].features)
    grown.verify()
    with pytest.raises(DataError, match="encoder test, not other"):
        make_store(store.path, {"c": regions_of(0)}, top_k=CLASSES, encoder="other")


def test_a_key_finds_its_image_without_the_ending_too(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"12": regions_of(0), "v1.2": regions_of(1)})
    assert "12.jpg" in store and store.count("12.jpg") == len(regions_of(0))
    assert "12.jpg.png" not in store and "v1.3" not in store
    with pytest.raises(DataError, match=r"no regions of '7\.jpg'"):
        store.table(["12", "7.jpg"])


def test_a_store_goes_to_another_process(store: RegionStore, images: dict[str, Regions]) -> None:
    store.regions("a/0.jpg")
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.regions("a/1.jpg").features, images["a/1.jpg"].features)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two images are called 'a'"):
        StoreBuilder(tmp_path / "s", layout(), ["a", "b", "a"])


def test_regions_that_do_not_fit_stop_the_build_or_are_counted(tmp_path: Path) -> None:
    huge = regions_of(1)
    huge.features[1] = 1e6
    given_ = [regions_of(0), regions_of(2, classes=0), huge]

    def build(path: Path, bad: BadRecords) -> list[tuple[str, str]]:
        builder = StoreBuilder(path, layout(dtype="fp16"), ["a", "b", "c"])
        return builder.build(given_, lambda lots: (list(lot) for lot in lots), bad=bad).left_out

    with pytest.raises(DataError, match="0 classes, not 5"):
        build(tmp_path / "strict", BadRecords())
    left_out = build(tmp_path / "skipped", BadRecords(skip=True))
    assert [where for where, _ in left_out] == ["b", "c"] and "too large for fp16" in left_out[1][1]
    assert RegionStore(tmp_path / "skipped").keys == ["a"]


def test_damage_is_named(store: RegionStore) -> None:
    shard = Path(store.path) / "shards" / "00001.arrow"
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 255
    shard.write_bytes(bytes(changed))
    with pytest.raises(DataError, match=r"00001\.arrow: damaged"):
        RegionStore(store.path).verify()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"00001\.arrow: damaged"):
        RegionStore(store.path).regions("a/4.jpg")
    shard.unlink()
    with pytest.raises(DataError, match=r"00001\.arrow"):
        RegionStore(store.path).regions("a/4.jpg")
    (Path(store.path) / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="not the manifest"):
        RegionStore(store.path)


def test_a_class_outside_the_table_is_refused(tmp_path: Path, images: dict[str, Regions]) -> None:
    """A shard of other classes, with the right size and name, must not write beside the table."""
    store = make_store(tmp_path / "s", images, shard_images=100)
    foreign = [(key, regions_of(i, len(r) - 1, classes=9)) for i, (key, r) in enumerate(images.items())]
    data = shard_bytes(foreign, layout(num_classes=9, top_k=5))
    (tmp_path / "s" / "shards" / "00000.arrow").write_bytes(data)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = len(data)
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"a class outside 0\.\.4"):
        RegionStore(store.path).table(list(images))


def test_a_folder_without_a_store_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no region store here"):
        RegionStore(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="holds something else"):
        StoreBuilder(tmp_path, layout(), ["a"])


def test_parts_together_make_what_one_makes(tmp_path: Path) -> None:
    files = save_pictures(tmp_path / "pictures", 20)
    extract_pictures(tmp_path / "whole", files)
    for part in (2, 0, 1):
        extract_pictures(tmp_path / "parts", files, (part, 3))
        if part:
            with_manifest = (tmp_path / "parts" / "manifest.json").exists()
            assert with_manifest == (part == 1)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    extract_pictures(tmp_path / "parts", files, (2, 3))  # again: nothing is left to do
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_an_extraction_killed_ten_times_ends_with_the_same_bytes(tmp_path: Path) -> None:
    files = save_pictures(tmp_path / "pictures", 48)
    start = time.monotonic()
    extract_pictures(tmp_path / "whole", files)
    undisturbed = time.monotonic() - start
    context = multiprocessing.get_context("fork")  # a process of its own, without importing everything anew
    dice, kills, out = random.Random(3), 0, tmp_path / "killed"
    for _ in range(10):
        process = context.Process(target=extract_pictures, args=(out, files))
        process.start()
        process.join(dice.uniform(0, undisturbed / 6))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += 1
        if (out / "plan.json").exists() and not (out / "manifest.json").exists():
            with pytest.raises(DataError, match="unfinished"):
                RegionStore(out)
    assert kills >= 3
    extract_pictures(out, files)
    assert content(out) == content(tmp_path / "whole")
    RegionStore(out).verify()


def build(path: Path, images: dict[str, Regions | DataError], skip: bool = False, **changes: Any) -> BuildReport:
    """A build of shards of two images."""
    builder = StoreBuilder(path, layout(**changes), list(images), shard_images=2)
    return builder.build(list(images.values()), lambda lots: (list(lot) for lot in lots), bad=BadRecords(skip=skip))


DAMAGED = DataError("not an image", where="bad.jpg")


def test_what_an_unfinished_extraction_of_other_images_did_is_kept(tmp_path: Path) -> None:
    given_: dict[str, Regions | DataError] = {f"{i}.jpg": regions_of(i) for i in range(5)}
    with pytest.raises(DataError, match="not an image"):
        build(tmp_path / "s", given_ | {"bad.jpg": DAMAGED})
    assert not (tmp_path / "s" / "manifest.json").exists()
    report = build(tmp_path / "s", given_)  # the damaged picture was removed
    assert (report.images, report.known, report.complete) == (1, 4, True)
    store = RegionStore(tmp_path / "s")
    store.verify()
    assert store.keys == list(given_)
    assert sorted(content(tmp_path / "s")) == [
        "keys-00003.arrow",
        "manifest.json",
        *(f"shards/0000{i}.arrow" for i in range(3)),
    ]


def test_a_plan_of_which_nothing_is_done_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an image"):
        build(tmp_path / "s", {"bad.jpg": DAMAGED, "a": regions_of(0)})
    build(tmp_path / "s", {"a": regions_of(0)}, dtype="fp16")
    with pytest.raises(DataError, match="not an image"):
        build(tmp_path / "s", {"a": regions_of(0), "bad.jpg": DAMAGED}, dtype="fp16")
    report = build(tmp_path / "s", {"a": regions_of(0), "c": regions_of(1), "d": regions_of(2)}, dtype="fp16")
    assert (report.known, report.images, report.complete) == (1, 2, True)
    assert RegionStore(tmp_path / "s").keys == ["a", "c", "d"]
    assert not (tmp_path / "s" / "plan.json").exists()


def test_bad_images_leave_a_finished_store_as_it_is(tmp_path: Path) -> None:
    given_: dict[str, Regions | DataError] = {"a": regions_of(0), "bad.jpg": DAMAGED}
    build(tmp_path / "s", given_, skip=True)
    before = content(tmp_path / "s")
    for _ in range(2):
        report = build(tmp_path / "s", given_, skip=True)
        assert (report.images, report.known, report.complete) == (0, 1, True)
        assert report.left_out == [("bad.jpg", "not an image")]
        assert content(tmp_path / "s") == before
    build(tmp_path / "s", given_ | {"b": regions_of(1)}, skip=True)
    store = RegionStore(tmp_path / "s")
    store.verify()
    assert store.keys == ["a", "b"] and store.manifest.left_out == [("bad.jpg", "not an image")]


def test_a_build_without_any_image_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="no image can be used"):
            build(tmp_path / "s", {"bad.jpg": DAMAGED}, skip=True)
        assert not content(tmp_path / "s")


def test_unfinished_shards_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    given_: dict[str, Regions | DataError] = {"a": regions_of(0), "b": regions_of(1), "bad.jpg": DAMAGED}
    with pytest.raises(DataError, match="not an image"):
        build(tmp_path / "s", given_)
    with pytest.raises(DataError, match="unfinished extraction with other settings") as caught:
        build(tmp_path / "s", given_, dtype="fp16")
    assert "delete the folder" in str(caught.value.hint)


def test_a_part_that_another_extraction_has_replaced_stops(tmp_path: Path) -> None:
    overtaken = StoreBuilder(tmp_path / "s", layout(), ["a", "b"], shard_images=1)
    build(tmp_path / "s", {"c": regions_of(2), "d": regions_of(3)})
    StoreBuilder(tmp_path / "s", layout(), ["e"])
    with pytest.raises(DataError, match="an extraction of other images has begun here"):
        overtaken.build([regions_of(0), regions_of(1)], lambda lots: (list(lot) for lot in lots))
    assert RegionStore(tmp_path / "s").keys == ["c", "d"]


def test_a_build_killed_while_it_tidied_up_is_finished(tmp_path: Path) -> None:
    files = save_pictures(tmp_path / "pictures", 8)
    extract_pictures(tmp_path / "s", files, (0, 2))
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "s", kept)
    extract_pictures(tmp_path / "s", files, (1, 2))
    finished = content(tmp_path / "s")
    shutil.copy(kept / "plan.json", tmp_path / "s" / "plan.json")
    shutil.copytree(kept / "done", tmp_path / "s" / "done")
    extract_pictures(tmp_path / "s", files)
    assert content(tmp_path / "s") == finished
