"""Shards and their reader: what is written is what is read, in an order that follows from the seed alone."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from training_parts import clip_arrays, make_dataset, small_parts

from fye_pipeline.errors import UserError
from fye_pipeline.training import dataset as reading
from fye_pipeline.training.clip_batches import ClipBatches, Order
from fye_pipeline.training.dataset import INDEX, Dataset, ShardWriter, join_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "made")


def test_every_frame_and_row_is_found_at_its_place(folder: Path) -> None:
    assert (folder / INDEX).is_file()
    dataset = Dataset(folder)
    assert [clip.frames for clip in dataset.clips] == [6, 5, 8, 6]
    for clip, seed in enumerate((0, 1, 10, 11)):
        numbers = range(dataset.clips[clip].frames)
        pictures, arrays = clip_arrays(len(numbers), seed)
        read = dataset.frames(clip, numbers).astype(int)
        assert np.abs(read - pictures).mean() < 4  # JPEG
        assert np.abs(read[..., 0].mean((1, 2)) - 8 * np.arange(len(numbers))).max() < 2  # no frame stands for another
        for name, values in arrays.items():
            assert np.array_equal(dataset.array(name, clip, numbers), values.astype(np.float32))
    assert np.array_equal(dataset.landmarks(2, [7, 0]), dataset.landmarks(2, range(8))[[7, 0]])


def test_shards_are_plain_tar_files_in_the_webdataset_layout(folder: Path) -> None:
    with tarfile.open(folder / "shards" / "shard-00001.tar") as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
    samples: dict[str, set[str]] = {}
    for name in members:
        key, extension = name.split(".", 1)
        samples.setdefault(key, set()).add(extension)
    assert list(samples) == ["video1-0000", "video1-0001"]
    arrays = {f"{name}.npy" for name in ("landmarks", "mesh", "poses", "blendshapes")}
    assert samples["video1-0001"] == {f"{number:05d}.jpg" for number in range(6)} | arrays | {"json"}
    with tarfile.open(folder / "shards" / "shard-00001.tar") as tar:
        held = tar.extractfile("video1-0001.landmarks.npy")
        assert held is not None
        landmarks = np.load(io.BytesIO(held.read()))
        note = tar.extractfile("video1-0001.json")
        assert note is not None
        assert json.load(note) == {"video": "video1.mp4", "fps": "25", "frames": 6}
    assert np.array_equal(landmarks, Dataset(folder).landmarks(3, range(6)))


def test_parts_join_into_one_shard(tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        writer = ShardWriter(tmp_path / f"{number}.tar")
        pictures, arrays = clip_arrays(2, number)
        held = writer.begin(f"clip-{number}", "v", "25")
        for picture in pictures:
            held.add(picture)
        held.finish(arrays, {})
        parts.append((tmp_path / f"{number}.tar", writer.size, writer.entries))
        writer.close()
    joined = join_parts(parts, tmp_path / "joined.tar")
    with tarfile.open(tmp_path / "joined.tar") as tar:
        places = {member.name: member.offset_data for member in tar}
    assert len(places) == 3 * 7
    assert [entry.jpegs[1][0] for entry in joined] == [places[f"clip-{number}.00001.jpg"] for number in range(3)]
    parts[1][0].write_bytes(parts[1][0].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"1\.tar is cut short"):
        join_parts(parts, tmp_path / "broken.tar")
    assert not (tmp_path / "broken.tar").exists()


def test_keys_have_no_dots_and_arrays_a_row_a_frame(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"no dot and no slash, got 'a\.b'"):
        writer.begin("a.b", "v", "25")
    with pytest.raises(ValueError, match="mesh must have 0 rows, one a frame, got 3"):
        writer.begin("a", "v", "25").finish({"mesh": np.zeros((3, 468, 3))}, {})
    writer.close()


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no dataset\.json; make one with `fye prepare"):
        Dataset(tmp_path)
    folder = make_dataset(tmp_path / "made", [[3], [3]])
    shard = folder / "shards" / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[512:640] = bytes(128)
    shard.write_bytes(content)
    dataset = Dataset(folder)
    with pytest.raises(UserError, match=r"frame 0 of video0-0000 is damaged"):
        dataset.frame(0, 0)
    shard.write_bytes(content[:2000])
    with pytest.raises(UserError, match="is cut short"):
        dataset.landmarks(0, [2])
    (folder / "shards" / "shard-00001.json").unlink()
    with pytest.raises(UserError, match=r"lacks shard-00001\.json"):
        Dataset(folder)
    (folder / "dataset.json").write_text('{"kind": "fye.dataset", "version": 7}', encoding="utf-8")
    with pytest.raises(UserError, match=r"of version 7; this program reads fye\.dataset 1"):
        Dataset(folder)


def test_a_copy_for_another_process_reads_the_same(folder: Path) -> None:
    dataset = Dataset(folder)
    first = dataset.frame(1, 2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.frame(1, 2), first)


def test_every_epoch_has_each_clip_once_in_another_order() -> None:
    shard_of = [number // 5 for number in range(40)]
    order = Order(shard_of, seed=(3,), window=2)
    epochs = [[order[40 * epoch + place] for place in range(40)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = Order(shard_of, seed=(3,), window=2)
    assert [again[85], again[2]] == [epochs[2][5], epochs[0][2]]
    assert [Order(shard_of, seed=(4,), window=2)[place] for place in range(40)] != epochs[0]


def test_clips_are_shuffled_within_a_window_of_shards() -> None:
    shard_of = [number // 5 for number in range(40)]
    order = Order(shard_of, seed=(0,), window=2)
    for start in range(0, 40, 10):
        assert len({shard_of[order[start + place]] for place in range(10)}) == 2
    assert [order[place] for place in range(10)] != sorted(order[place] for place in range(10))


def test_processes_divide_an_epoch_between_them(folder: Path) -> None:
    dataset = Dataset(folder)
    batches = ClipBatches(dataset, None, small_parts()["feature_extractor"], 0, cell=8, processes=2)
    seen: list[int] = []
    collect = batches._collect
    batches._collect = lambda clips, *rest: (seen.extend(clips), collect(clips, *rest))[1]  # type: ignore[method-assign]
    for rank in range(2):
        batches.draw(2, 2, 0, rank, clips=False)
    assert sorted(seen) == [0, 1, 2, 3]


def test_reading_holds_few_files_and_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_OPEN_FILES", 3)
    dataset = Dataset(make_dataset(tmp_path / "made", [[4]] * 6))

    def read_all() -> None:
        for clip in range(6):
            dataset.frames(clip, range(4))
            dataset.landmarks(clip, range(4))

    read_all()
    assert len(dataset._files) == 3
    tracemalloc.start()
    read_all()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(3):
        read_all()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000  # two pictures are 24576 bytes
