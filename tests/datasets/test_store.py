"""The store: appending, resuming, crash safety, damage, missing labels, many workers."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import getitem

import h5py
import numpy as np
import pytest

from tesseral.datasets import Store, StoreWriter, Structure, read, write_store
from tesseral.datasets.errors import DataError
from tesseral.datasets.ingest import convert


def frame(number: int, **labels) -> Structure:
    rng = np.random.default_rng(number)
    n = 1 + number % 7
    values = {"energy": float(number), "forces": rng.normal(size=(n, 3)), **labels}
    return Structure(rng.integers(1, 9, n), rng.normal(size=(n, 3)), labels=values, info={"number": number})


def numbers(store) -> list[int]:
    return [int(s.info["number"]) for s in store]


def test_missing_labels_stay_missing(tmp_path):
    frames = [frame(0), Structure([1], [[0, 0, 0]]), frame(2, stress=np.arange(6.0))]
    write_store(tmp_path / "a.h5", frames)
    store = Store(tmp_path / "a.h5")
    assert [sorted(s.labels) for s in store] == [["energy", "forces"], [], ["energy", "forces", "stress"]]
    assert store.label_counts == {"energy": 2, "forces": 2, "stress": 1}
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.isnan(file["labels/energy/values"][1])
        assert file["labels/stress/mask"][:].tolist() == [False, False, True]


def test_units_provenance_schema_and_checksum_are_recorded(tmp_path):
    write_store(tmp_path / "a.h5", [frame(1)], provenance={"made": "here"})
    store = Store(tmp_path / "a.h5")
    assert store.units["energy"] == "eV"
    assert store.units["length"] == "Å"
    assert store.provenance == {"made": "here"}
    assert store.checksum.startswith("sha256:")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["schema_version"] == 1


def test_the_checksum_depends_on_the_contents_not_on_the_parts(tmp_path):
    frames = [frame(i) for i in range(20)]
    write_store(tmp_path / "a.h5", frames)
    with StoreWriter(tmp_path / "b.h5") as writer:
        for i, structure in enumerate(frames):
            writer.append(structure)
            if i % 6 == 0:
                writer.flush()
    write_store(tmp_path / "c.h5", [*frames[:-1], frame(3)])
    a, b, c = (Store(tmp_path / f"{name}.h5").checksum for name in "abc")
    assert a == b != c


def test_append_continues_and_keeps_the_provenance(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(0)], provenance={"first": 1})
    write_store(path, [frame(1, stress=np.ones(6))], provenance={"second": 2}, append=True)
    store = Store(path)
    assert numbers(store) == [0, 1]
    assert "stress" not in store[0].labels
    assert store.provenance == {"second": 2, "appended_to": {"first": 1}}
    store.verify()


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(0)])
    with pytest.raises(DataError, match=r"a.h5: exists: overwrite it \(--force\)"):
        write_store(path, [frame(1)])
    assert numbers(Store(path)) == [0]
    write_store(path, [frame(1)], overwrite=True)
    assert numbers(Store(path)) == [1]


def test_an_empty_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="no frames to write"):
        write_store(tmp_path / "a.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_no_store_and_a_resumable_job(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(RuntimeError), StoreWriter(path) as writer:
        writer.append(frame(0))
        writer.flush()
        writer.append(frame(1))
        raise RuntimeError
    assert not path.exists()
    with pytest.raises(DataError, match=r"an interrupted job left a.h5.partial: go on \(--resume\)"):
        StoreWriter(path)
    with StoreWriter(path, resume=True) as writer:
        assert writer.n_frames == 1
        writer.append(frame(1))
    assert numbers(Store(path)) == [0, 1]
    assert not writer.folder.exists()


def test_ctrl_c_keeps_every_frame(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "a.h5") as writer:
        writer.append(frame(0))
        raise KeyboardInterrupt
    with StoreWriter(tmp_path / "a.h5", resume=True) as writer:
        assert writer.n_frames == 1


def test_another_job_is_not_resumed(tmp_path):
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "a.h5", job="one") as writer:
        writer.append(frame(0))
        raise RuntimeError
    with pytest.raises(DataError, match="is of another job"):
        StoreWriter(tmp_path / "a.h5", job="two", resume=True)


def test_a_job_killed_after_its_last_step_is_not_appended_twice(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_store(path, [frame(0)])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: None)  # killed before the parts were removed
        write_store(path, [frame(1)], append=True)
    assert (tmp_path / "a.h5.partial").exists()
    with pytest.raises(DataError, match="had finished already: there is nothing to resume"):
        StoreWriter(path, append=True, resume=True)
    assert numbers(Store(path)) == [0, 1]
    assert not (tmp_path / "a.h5.partial").exists()


def test_two_writers_do_not_mix(tmp_path):
    first = StoreWriter(tmp_path / "a.h5")
    with pytest.raises(DataError, match="another process is writing this store"):
        StoreWriter(tmp_path / "a.h5", resume=True)
    first.append(frame(0))
    first.close()
    assert numbers(Store(tmp_path / "a.h5")) == [0]


KILLED = """
import sys
from tesseral.datasets.ingest import convert
from tesseral.datasets import Structure
import time
def slow(n):
    print(n, flush=True)
    time.sleep(0.002)
convert(sys.argv[1], sys.argv[2], flush_seconds=0.02, progress=slow)
"""


def test_kill_9_while_converting_loses_at_most_the_last_interval(tmp_path, repo_root):
    from tesseral.datasets.write import write

    source, output = tmp_path / "in.xyz", tmp_path / "out.h5"
    write(source, [frame(i) for i in range(600)])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(output)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    done = 0
    while done < 150:
        done = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not output.exists()
    parts = sorted((tmp_path / "out.h5.partial").glob("part-*.h5"))
    safe = 0
    for part in parts:
        with h5py.File(part) as file:
            safe += file.attrs["n_frames"]
    assert 0 < safe <= 600
    seen = []
    assert convert(source, output, resume=True, progress=seen.append) == 600
    assert seen[0] == safe + 1  # what was safe was not done again
    assert numbers(Store(output)) == list(range(600))
    Store(output).verify()
    assert not (tmp_path / "out.h5.partial").exists()


def test_kill_9_at_any_moment_leaves_the_old_store_or_the_new_one(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(0)])
    code = """
import sys, numpy as np
from tesseral.datasets import Structure, write_store
while True:
    print("go", flush=True)
    write_store(sys.argv[1], [Structure([1], [[0, 0, 0]], info={"number": i}) for i in range(40)], append=True)
"""
    for delay in (0.0, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(path)
        store.verify()
        assert len(store) % 40 == 1
        for leftover in (tmp_path / "a.h5.partial").glob("*"):
            leftover.unlink()
        if (tmp_path / "a.h5.partial").exists():
            (tmp_path / "a.h5.partial").rmdir()


def test_a_truncated_file_says_so(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(i) for i in range(50)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a.h5: truncated HDF5 file .*copy or make it again"):
        Store(path)
    with pytest.raises(DataError, match="truncated HDF5 file"):
        read(path)


def test_a_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(i) for i in range(200)])
    with h5py.File(path) as file:
        offset = file["atoms/positions"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"damaged data in dataset '/?atoms/positions'"):
        Store(path).verify()
    with pytest.raises(DataError, match="damaged data in dataset 'atoms/positions'"):
        Store(path)[0]


def test_changed_values_do_not_match_the_checksum(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(i) for i in range(5)])
    with h5py.File(path, "r+") as file:
        file["labels/energy/values"][3] = 7.0
    with pytest.raises(DataError, match="'labels/energy/values' does not match its checksum"):
        Store(path).verify()


def test_no_store_and_a_newer_schema_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="is no tesseral store"):
        Store(tmp_path / "other.h5")
    write_store(tmp_path / "a.h5", [frame(0)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(DataError, match="store of schema 99, this version reads up to 1"):
        Store(tmp_path / "a.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match="this is no HDF5 file"):
        Store(tmp_path / "text.h5")


def test_bad_shapes_are_refused_with_the_frame(tmp_path):
    bad = Structure([1, 1], np.zeros((2, 3)), labels={"forces": np.zeros((3, 3))})
    with pytest.raises(DataError, match=r"frame 1: label 'forces' has shape \(3, 3\), expected \(2, 3\)"):
        write_store(tmp_path / "a.h5", [frame(0), bad])


def test_a_small_cache_gives_the_same_frames(tmp_path):
    frames = [frame(i) for i in range(3000)]
    write_store(tmp_path / "a.h5", frames)
    store = Store(tmp_path / "a.h5", cache_bytes=1)
    order = np.random.default_rng(0).permutation(3000)[:200]
    assert [int(store[i].info["number"]) for i in order] == order.tolist()
    assert len(store._cache) <= 2
    assert numbers(store[10:2990:400]) == list(range(10, 2990, 400))


def test_what_a_user_does_to_a_frame_does_not_reach_the_cache(tmp_path):
    write_store(tmp_path / "a.h5", [frame(5)])
    store = Store(tmp_path / "a.h5")
    first = store[0]
    first.positions += 1
    first.labels["forces"] *= 0
    np.testing.assert_array_equal(store[0].positions, frame(5).positions)
    np.testing.assert_array_equal(store[0].labels["forces"], frame(5).labels["forces"])


def test_a_replaced_store_is_noticed_when_opened_again(tmp_path):
    path = tmp_path / "a.h5"
    write_store(path, [frame(0)])
    state = pickle.dumps(Store(path))
    write_store(path, [frame(1)], overwrite=True)
    with pytest.raises(DataError, match="the store was replaced while in use"):
        pickle.loads(state)


_shared: list[Store] = []  # what forked workers inherit


def _sum(store, indices):
    return sum(float(store[i].labels["energy"]) for i in indices)


def _sum_shared(indices):
    return _sum(_shared[-1], indices)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_workers_read_at_once(tmp_path, method):
    write_store(tmp_path / "a.h5", [frame(i) for i in range(500)])
    store = Store(tmp_path / "a.h5", cache_bytes=1)
    assert float(store[3].labels["energy"]) == 3.0  # the parent has the file open before the fork
    shares = [range(k, 500, 4) for k in range(4)]
    _shared.append(store)
    with ProcessPoolExecutor(3, mp_context=get_context(method)) as pool:
        if method == "fork":
            sums = list(pool.map(_sum_shared, shares))
        else:  # a spawned process cannot import this file by name: it gets a function that it can
            frames = list(pool.map(getitem, [store] * 500, range(500), chunksize=125))
            sums = [_sum(frames, share) for share in shares]
    assert sums == [float(sum(share)) for share in shares]


def test_convert_records_where_the_data_came_from(tmp_path):
    from tesseral.datasets import KeyMap, Units
    from tesseral.datasets.write import write

    write(tmp_path / "in.xyz", [frame(0), frame(1)])
    counts = []
    n = convert(
        tmp_path / "in.xyz", tmp_path / "out.h5", keys=KeyMap(energy="energy"), units=Units(energy="Ha"),
        provenance={"command": "test"}, progress=counts.append,
    )  # fmt: skip
    store = Store(tmp_path / "out.h5")
    assert (n, counts) == (2, [1, 2])
    assert float(store[1].labels["energy"]) == pytest.approx(27.211386245981)
    record = store.provenance
    assert record["sources"][0]["format"] == "extxyz"
    assert (record["keys"], record["units"]) == ({"energy": "energy"}, {"energy": "Ha"})
    assert record["command"] == "test"
    json.dumps(record)
    with pytest.raises(DataError, match="the output is one of the sources"):
        convert([tmp_path / "out.h5"], tmp_path / "out.h5", overwrite=True)
