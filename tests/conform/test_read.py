"""Reading a port's dump: four formats, and files that lie. What cannot be used is named; the rest is read."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from bitnet_ref.checks import CheckError
from bitnet_ref.conform.read import fits, read_dump

WANTED = {"a.x": (2, 3), "a.x_scale": (2, 1), "a.codes": (4,), "s": ()}
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array):
    f = io.BytesIO()
    np.save(f, array)
    return f.getvalue()


def write(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_dump(folder, WANTED)


def raw(**entry):
    return {"a.x": {"file": "x.bin", "dtype": "float32", "shape": [2, 3], **entry}}


FORMS = {
    "npy": {"a.x.npy": npy(X)},
    "fortran": {"a.x.npy": npy(np.asfortranarray(X))},
    "big endian": {"a.x.npy": npy(X.astype(">f4"))},
    "safetensors": {"any.safetensors": save({"a.x": X})},
    "raw": {"index.json": raw(), "x.bin": X.tobytes()},
    "raw with offset": {"index.json": raw(offset=8), "x.bin": b"12345678" + X.tobytes() + b"rest"},
    "raw float64": {"index.json": raw(dtype="float64"), "x.bin": X.astype("<f8").tobytes()},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_format(form, tmp_path):
    dump = write(tmp_path, FORMS[form])
    assert dump.problems == []
    assert np.array_equal(dump.tensors["a.x"], X)


def test_npz_and_a_mixture(tmp_path):
    f = io.BytesIO()
    np.savez(f, **{"a.x": X, "s": np.float64(3)})
    dump = write(tmp_path, {"t.npz": f.getvalue(), "a.codes.npy": npy(np.int64([1, 2, 3, 4]))})
    assert set(dump.tensors) == {"a.x", "s", "a.codes"}
    assert dump.files == 2


def test_bfloat16_from_safetensors(tmp_path):
    data, header = X.astype(ml_dtypes.bfloat16).tobytes(), None
    header = json.dumps({"a.x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    dump = write(tmp_path, {"b.safetensors": len(header).to_bytes(8, "little") + header + data})
    assert np.array_equal(dump.tensors["a.x"].astype(np.float32), X)


@pytest.mark.parametrize(("shape", "ok"), [
    ((2, 3), True), ((1, 2, 3), True), ((2, 3, 1), True), ((2, 1, 3), True), ((3, 2), False), ((6,), False),
    ((2, 4), False), ((), False)])
def test_shapes_that_fit(shape, ok):
    assert fits(shape, (2, 3)) == ok
    assert fits((7, 4, 32), (7, 128))                      # heads kept apart
    assert fits((), (1,))
    assert fits((1, 4, 8), (1, 32))                        # also of a single token


PROBLEMS = {
    "a wrong name": ({"a.X.npy": npy(X)}, "is a.x meant?"),
    "a wrong shape": ({"a.x.npy": npy(X[:, :2])}, "a.x must have the shape (2, 3); got (2, 2)"),
    "transposed": ({"a.x.npy": npy(X.T.copy())}, "write it transposed"),
    "one scale for all": ({"a.x_scale.npy": npy(np.float32(1))}, "activations_per_tensor"),
    "a scale per feature": ({"a.x_scale.npy": npy(np.ones((1, 3)))}, "activations_wrong_axis"),
    "complex": ({"a.x.npy": npy(X + 1j)}, "a.x must hold numbers; got complex"),
    "objects": ({"a.x.npy": npy(np.array([[None] * 3] * 2))}, "must be readable"),
    "not an array": ({"a.x.npy": b"hello"}, "must be readable"),
    "cut short": ({"a.x.npy": npy(X)[:-4]}, "must be readable"),
    "an empty file": ({"a.x.npy": b""}, "must be readable"),
    "safetensors cut short": ({"t.safetensors": save({"a.x": X})[:-4]}, "a file cut short"),
    "no safetensors": ({"t.safetensors": b"\xff" * 40}, "header"),
    "a header of terabytes": ({"t.safetensors": (1 << 40).to_bytes(8, "little")}, "header"),
    "raw, no file": ({"index.json": raw()}, "must lie beside index.json"),
    "raw, a path": ({"index.json": raw(file="../../etc/passwd")}, "must lie beside index.json"),
    "raw, cut short": ({"index.json": raw(), "x.bin": X.tobytes()[:-1]}, "must hold 24 bytes"),
    "raw, a strange dtype": ({"index.json": raw(dtype="float8"), "x.bin": b""}, "dtypes: float32"),
    "raw, a negative shape": ({"index.json": raw(shape=[-2, -3]), "x.bin": b""}, "must have file, dtype"),
    "raw, an absurd shape": ({"index.json": raw(shape=[2, 1 << 39]), "x.bin": b""}, "must have the shape"),
    "raw, a negative offset": ({"index.json": raw(offset=-8), "x.bin": X.tobytes()}, "must have file, dtype"),
    "raw, no table": ({"index.json": [1, 2]}, "must be a table"),
    "raw, no JSON": ({"index.json": b"{"}, "must be readable"),
    "no zip": ({"t.npz": b"PK nonsense"}, "must be readable"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_named_and_the_rest_is_read(problem, tmp_path):
    files, message = PROBLEMS[problem]
    dump = write(tmp_path, {**files, "a.codes.npy": npy(np.arange(4))})
    assert len(dump.problems) == 1
    assert message in dump.problems[0][1]
    assert set(dump.tensors) == {"a.codes"}
    assert dump.problems[0][1].count(";") >= 2             # three parts


def test_twice_the_same_tensor(tmp_path):
    dump = write(tmp_path, {"a.x.npy": npy(X), "t.safetensors": save({"a.x": X})})
    assert "must be dumped once" in dump.problems[0][1]


def test_a_member_that_claims_more_than_it_may_is_not_allocated(tmp_path):
    """A zip of a kilobyte whose header promises terabytes: the shape is refused before anything is read."""
    head = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)}
    np.lib.format.write_array_header_1_0(head, claim)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as z:
        z.writestr("a.x.npy", head.getvalue())
    dump = read_dump(tmp_path, WANTED)
    assert "must have the shape" in dump.problems[0][1]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_no_dump_at_all(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckError, match="must"):
        read_dump(tmp_path / folder, WANTED)


@given(data=st.binary(max_size=200), suffix=st.sampled_from([".npy", ".npz", ".safetensors", ".json"]))
def test_noise_never_gives_a_traceback(data, suffix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    (folder / ("index.json" if suffix == ".json" else f"a.x{suffix}")).write_bytes(data)
    dump = read_dump(folder, WANTED)
    assert dump.tensors == {}


@given(at=st.integers(0, 400), value=st.integers(0, 255), form=st.sampled_from(["npy", "safetensors", "raw"]))
def test_a_flipped_byte_never_gives_a_traceback(at, value, form, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip")
    for name, data in FORMS[form].items():
        data = bytearray(data if isinstance(data, bytes) else json.dumps(data).encode())
        data[at % len(data)] = value
        (folder / name).write_bytes(data)
    dump = read_dump(folder, WANTED)
    assert set(dump.tensors) <= {"a.x"}
