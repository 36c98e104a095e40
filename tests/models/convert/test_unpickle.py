"""Read pickles of networks as data; reject all other content by name, and execute nothing."""

import collections
import contextlib
import copyreg
import datetime
import decimal
import fractions
import pathlib
import pickle
import types
import uuid
from pathlib import Path

import pytest
import torch
from malicious import MAGIC, VERSION, binary, corpus, text

from sid_core.errors import UserError
from sid_core.models.convert.unpickle import PickledObject, read_pickle

HARM = list(corpus(Path("/nowhere/marker")))


def load(tmp_path, data: bytes) -> object:
    (tmp_path / "x.pkl").write_bytes(data)
    return read_pickle(tmp_path / "x.pkl")


# --- data --------------------------------------------------------------------------------------------------------------

PLAIN = {
    "a": [1, -1, 2**70, 1.5, None, True, False, b"bytes", "text é", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "b": {1, "x"},
    "c": {"nested": {"deeper": [[]]}, 3: frozenset([1])},
    "long": ["x" * 300, b"y" * 300, list(range(3000))],
}


@pytest.mark.parametrize("protocol", [4, 5])
def test_read_pickle_of_plain_data_equals_pickle(tmp_path, protocol):
    assert load(tmp_path, pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(6))
def test_read_pickle_of_every_protocol_reads_it(tmp_path, protocol):
    value = {"a": [1, 2.5, "x", None, True, (1, 2)], "b": {"c": [[]]}}
    assert load(tmp_path, pickle.dumps(value, protocol)) == value


def test_read_pickle_of_an_ordered_dict_returns_a_dict(tmp_path):
    ordered = collections.OrderedDict(b=1, a=2)
    ordered.attribute = 3
    assert load(tmp_path, pickle.dumps(ordered)) == {"b": 1, "a": 2}


VALUES = [
    pathlib.PurePosixPath("/a/b"),
    pathlib.PureWindowsPath("c:/x"),
    Path("runs") / "00001",
    decimal.Decimal("1.5"),
    fractions.Fraction(1, 3),
    datetime.date(2024, 1, 2),
    datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    datetime.timedelta(days=1, seconds=2),
    datetime.time(1, 2),
    uuid.UUID(int=7),
    types.SimpleNamespace(a=1),
    1 + 2j,
    range(3),
    slice(1, 2),
]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_read_pickle_of_a_plain_value_keeps_its_class_as_a_name(tmp_path, value, protocol):
    read = load(tmp_path, pickle.dumps({"x": value}, protocol))["x"]
    assert type(read) is PickledObject
    assert read.symbol.name == type(value).__name__


def test_read_pickle_of_a_plain_value_keeps_its_arguments(tmp_path):
    assert load(tmp_path, pickle.dumps(Path("a/b"))).arguments == ("a", "b")
    assert load(tmp_path, pickle.dumps(decimal.Decimal("1.5"))).arguments == ("1.5",)
    assert load(tmp_path, pickle.dumps(types.SimpleNamespace(a=1))).state == {"a": 1}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset("ab"), collections.deque([1, 2], maxlen=5)], ids=lambda v: type(v).__name__
)
def test_read_pickle_of_a_set_or_deque_reads_its_members(tmp_path, value, protocol):
    read = load(tmp_path, pickle.dumps(value, protocol))
    assert type(read) is (list if isinstance(value, collections.deque) else type(read))
    assert list(read) == list(value) or read == set(value)


@pytest.mark.parametrize(
    "name", ["pathlib.os", "pathlib.Path.unlink", "datetime.sys", "decimal.getcontext", "builtins.eval", "uuid.os"]
)
def test_read_pickle_of_other_names_in_those_modules_rejects_them(tmp_path, name):
    module, attribute = name.split(".", 1)
    data = b"\x80\x04" + text(module) + text(attribute) + b"\x93)R."
    with pytest.raises(UserError, match=f"rejected: the name {name}"):
        load(tmp_path, data)


def test_read_pickle_of_shared_objects_keeps_them_shared(tmp_path):
    inner = [1]
    first, second = load(tmp_path, pickle.dumps([inner, inner]))
    assert first is second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_read_pickle_of_tensors_gives_equal_bits(tmp_path, dtype):
    base = torch.randn(6, 4).mul(3).to(dtype)
    tensors = [base, base.t(), base[1:3, ::2], torch.zeros(0, 3, dtype=dtype), base[0, 0]]
    for tensor, read in zip(tensors, load(tmp_path, pickle.dumps(tensors)), strict=True):
        assert read.dtype == dtype
        assert torch.equal(read, tensor)


def test_read_pickle_of_a_module_imports_no_class(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    read = load(tmp_path, pickle.dumps(module))
    assert type(read) is PickledObject
    assert str(read.symbol) == "torch.nn.modules.container.Sequential"
    linear = read.state["_modules"]["0"]
    assert type(linear) is PickledObject
    assert torch.equal(linear.state["_parameters"]["weight"], module[0].weight)


# --- harm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HARM)
def test_read_pickle_of_malicious_content_raises_and_executes_nothing(tmp_path, name):
    marker = tmp_path / "marker"
    with pytest.raises(UserError, match="rejected: ") as caught:
        load(tmp_path, corpus(marker)[name])
    assert not marker.exists()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", HARM)
def test_pickle_of_malicious_content_executes_it(tmp_path, name):
    """Check that the pickles of the test before do execute code elsewhere."""
    marker = tmp_path / "marker"
    data = corpus(marker)[name]
    with contextlib.suppress(Exception):  # what comes after the harm may fail
        pickle.loads(data)
    assert marker.exists()


def test_read_pickle_of_forbidden_names_states_them(tmp_path):
    data = corpus(tmp_path / "marker")
    for name, expected in {
        "os.system": r"the name (posix|nt)\.system",
        "eval": r"the name builtins\.eval",
        "getattr": r"the name builtins\.getattr",
        "functools.partial": r"the name functools\.partial",
        "a dotted name of an allowed module": r"the name torch\.nn\.modules\.module\.torch\.os\.system",
        "INST": "the instruction INST os system",
        "OBJ": r"the name os\.system",
    }.items():
        with pytest.raises(UserError, match=f"x.pkl: rejected: {expected}; .*nothing was executed"):
            load(tmp_path, data[name])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04\x82\x01.", "the instruction EXT1"),
        (b"\x80\x04N(Q.", "the instruction BINPERSID"),
        (b"Pname\n.", "the instruction PERSID name"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.", "the instruction BYTEARRAY8"),
        (b"\x80\x04ctorch.nn.modules.linear\nLinear\n}b.", "Symbol where a PickledObject belongs"),
        (b"\x80\x04ctorch\nFloatStorage\nN\x85N\x85R.", "a call of tuple"),
        (b"\x80\x04])s.", "no valid pickle"),
        (b"\x80\x04}}Ns.", "dict as a key"),
        (b"\x80\x04})Ns.", "tuple as a key"),
    ],
)
def test_read_pickle_of_other_instructions_raises(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, data)


def test_read_pickle_of_a_registered_extension_code_raises(tmp_path):
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        with pytest.raises(UserError, match="the instruction EXT1"):
            load(tmp_path, b"\x80\x04\x82\xf0" + text(f"touch {tmp_path / 'marker'}") + b"\x85R.")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)
    assert not (tmp_path / "marker").exists()


# --- damage and bombs --------------------------------------------------------------------------------------------------


def storage(numel: int, data: bytes) -> bytes:
    """Pickle a storage as torch.save writes it, with the stated length."""
    described = b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu")
    described += b"\x8a\x08" + numel.to_bytes(8, "little") + b"NtQ."
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, VERSION, {"little_endian": True}))
    return head + described + pickle.dumps(["1"], 2) + numel.to_bytes(8, "little") + data


def tensor(of: bytes, offset: int, size: str, stride: str) -> bytes:
    """Pickle a call of _rebuild_tensor_v2, with size and stride as instructions of protocol 0."""
    loaded = b"ctorch.storage\n_load_from_bytes\n" + binary(of) + b"\x85R"
    return (
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n(" + loaded + f"I{offset}\n({size}t({stride}tI00\n}}tR.".encode()
    )


def test_read_pickle_of_a_tensor_checks_size_and_stride(tmp_path):
    values = torch.arange(6.0)
    read = load(tmp_path, tensor(storage(6, values.numpy().tobytes()), 1, "I2\nI2\n", "I3\nI1\n"))
    assert torch.equal(read, values.as_strided((2, 2), (3, 1), 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor(storage(6, bytes(20)), 0, "I6\n", "I1\n"), "a storage of 6 values in 20 bytes"),
        (tensor(storage(2**60, bytes(20)), 0, "I6\n", "I1\n"), "a storage of 1152921504606846976 values"),
        (tensor(storage(6, bytes(24)), 0, "I7\n", "I1\n"), r"a tensor of size \[7\] in 6 values"),
        (tensor(storage(6, bytes(24)), 4, "I3\n", "I1\n"), r"a tensor of size \[3\] in 6 values"),
        (tensor(storage(6, bytes(24)), 0, "I-1\n", "I1\n"), "place or size"),
        (tensor(storage(6, bytes(24)), -1, "I1\n", "I1\n"), "place or size"),
        (tensor(storage(6, bytes(24)), 0, "I1\nI1\n", "I1\n"), "no valid pickle"),
        (b"", "it ends before"),
        (b"not a pickle", "no valid pickle"),
        (pickle.dumps(PLAIN)[:-5], "it ends before"),
        (pickle.dumps({"a": [1]}, 0)[:-1], "it ends before|has no end"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.", "it ends before the 4611686018427387904 bytes"),
        (b"\x80\x04\x8b\xff\xff\xff\x7fx.", "it ends before"),
        (b"\x80\x04I" + b"9" * 100_000 + b"\n.", "no valid pickle"),
        (b"\x80\x04h\x05.", "no valid pickle"),
    ],
)
def test_read_pickle_of_damaged_bytes_names_the_cause(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, data)


def test_read_pickle_of_deep_or_long_content_raises(tmp_path, monkeypatch):
    load(tmp_path, b"\x80\x04N" + b"\x85" * 1_000_000 + b".")  # a tuple in a tuple, a million deep: read, and let go
    monkeypatch.setattr("sid_core.models.convert.unpickle.MOST_INSTRUCTIONS", 1000)
    with pytest.raises(UserError, match="more than 1,000 instructions"):
        load(tmp_path, b"\x80\x04" + b"]" * 2000 + b".")


@pytest.mark.parametrize(
    "copies",
    [
        b"ccollections\ndeque\n\x94](" + b"N" * 1000 + b"e\x85\x94" + b"h\x00h\x01R" * 6000,
        b"}(" + b"".join(b"M" + i.to_bytes(2, "little") + b"N" for i in range(1000)) + b"u\x94"
        b"ctorch.nn.modules.linear\nLinear\n)\x81" + b"h\x00b" * 6000,
    ],
    ids=["a list as an argument", "a dict as attributes"],
)
def test_read_pickle_of_copies_of_large_content_rejects_them(tmp_path, copies):
    with pytest.raises(UserError, match="more than 5,000,000 instructions"):
        load(tmp_path, b"\x80\x04" + copies + b".")


def test_read_pickle_of_a_zip_or_missing_file_names_it(tmp_path):
    torch.save({"ema": 1}, tmp_path / "x.pkl")
    with pytest.raises(UserError, match=r"a zip archive \(of torch.save\?\)"):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="no such file"):
        read_pickle(tmp_path / "y.pkl")
