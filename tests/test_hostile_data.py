"""Data from outside, of any kind: what is accepted is what the file holds, and all else gets a sentence."""

import csv
import gzip
import io
import json
import math
import os
import struct
import time
import tracemalloc
import wave
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.inputs import Arrays, Numbers, Pictures, Sounds, Targets
from weightloom.apps.fewshot.problems.pools import load_pools
from weightloom.apps.fewshot.support import read_inputs, read_support
from weightloom.cli import main
from weightloom.errors import DataError, WeightloomError
from weightloom.limits import FREE_BYTES, MOST_COLUMNS, MOST_LINE
from weightloom.tasks import PointPool, PointTasks, SinusoidTasks, load_folder, load_table
from weightloom.tasks import folder as folder_room

Image = pytest.importorskip("PIL.Image")
many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(call, *args, **options):
    """The value of a call; or None where it was refused in a sentence that a person can read."""
    try:
        return call(*args, **options)
    except WeightloomError as error:
        said = str(error)
        assert 20 < len(said) < 3000 and said.rstrip().endswith((".", "`"))
        assert said.count(". ") >= 1  # what is wrong, and what to do
        return None


# Tables

CELLS = st.sampled_from(
    [
        *(
            "1",
            "-2.5",
            "3e4",
            " 7 ",
            "nan",
            "inf",
            "-Infinity",
            "1e999",
            "",
            " ",
            "1_0",
            "0x10",
            "1,5",
            '"',
            '"1',
        ),
        *(
            '"2"',
            "é",
            "\x00",
            "٣",
            "9" * 400,
            "true",
            "None",
            "1\r",
            '"1\n2"',
            "a" * 140_000,
            "=1+1",
            "--1",
            "1e-400",
            "\ufeff1",
        ),
    ]
)
ROWS = st.lists(
    st.one_of(st.lists(CELLS, min_size=2, max_size=2), st.lists(CELLS, max_size=4)), max_size=4
)
HEADERS = st.sampled_from(
    ["task,x,y"] * 6
    + [
        "task;x;y",
        "task\tx\ty",
        "task,x",
        "x,y",
        "",
        "task,x,x",
        "task,,y",
        "TASK,x,y",
        "task,x,y,",
        '"task","x",y',
    ]
    + [
        "\ufefftask,x,y",
        " task , x , y ",
        "task,x,y,z",
        "a" * 300 + ",task,y",
        "task,task,y",
        '"task,x,y',
    ]
)
ENCODINGS = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1", "utf-32"])
DAMAGE = st.sampled_from(["none"] * 6 + ["cut", "flip", "bomb", "twice"])


def damaged(content, damage, at):
    if damage == "cut":
        return content[: int(at * len(content))]
    if damage == "flip" and content:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
    return content + content if damage == "twice" else content


def points_of(content):
    """The rows of a table by task, as the standard library reads them; None where a row is not like the others."""
    lines = content.decode("utf-8-sig").splitlines(keepends=True)
    separator = max(",;\t", key=lines[0].count)
    header, *rows = csv.reader(
        io.StringIO("".join(lines), newline=""), delimiter=separator, strict=True
    )
    header = [name.strip() for name in header]
    found = {}
    for row in (row for row in rows if row):
        cells = dict(zip(header, row, strict=True))
        numbers = [float(cell) for name, cell in cells.items() if name != "task"]
        assert all(map(math.isfinite, numbers)) and "_" not in "".join(
            cells[name] for name in header if name != "task"
        )
        found.setdefault(cells["task"].strip(), []).append(numbers)
    return found


@many
@given(HEADERS, ROWS, ENCODINGS, DAMAGE, st.floats(0, 1), st.booleans())
def test_a_table_is_read_as_the_standard_library_reads_it_or_is_refused(
    tmp_path, header, rows, encoding, damage, at, packed
):
    lines = [header, *(",".join(["a", *row]) for row in rows), *["b,1,2"] * 4]
    content = damaged("\n".join(lines).encode(encoding, errors="replace"), damage, at)
    path = tmp_path / ("table.csv.gz" if packed else "table.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    table = outcome(load_table, path)
    if table is None:
        return
    expected = points_of(content)
    kept = {name: its for name, its in expected.items() if len(its) >= 4}
    assert table.pool.names == tuple(kept) and table.pool.counts.tolist() == [
        len(its) for its in kept.values()
    ]
    assert {skipped.what for skipped in table.skipped} == set(expected) - set(kept)
    order = [*table.features, table.target]
    points = torch.cat([table.pool.x, table.pool.y], 1)
    assert len(order) == points.shape[1] and sorted(points.flatten().tolist()) == sorted(
        number for its in kept.values() for row in its for number in row
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"task,x,y\n" + b"\n" * 200_000, "blank"),
        (b"task,x,y\n" + b"a" * (MOST_LINE + 2), "a line of more than"),
        (b"task,x,y\n" + b'"a\n",' * (MOST_LINE // 4), "a row of more than|cells"),
        (b"task," + b",".join(b"%d" % column for column in range(MOST_COLUMNS)), "10,001 columns"),
    ],
    ids=["blank", "line", "row", "columns"],
)
def test_a_table_beyond_a_limit_is_refused_before_it_is_held(tmp_path, content, said):
    (tmp_path / "large.csv").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=said):
        load_table(tmp_path / "large.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(content) + 20_000_000


@pytest.mark.parametrize("line", [b"\n", b"a,1,1\n", b"a" * 1000])
def test_what_unpacks_to_a_hundred_times_its_size_is_refused_before_it_is_held(
    tmp_path, monkeypatch, line
):
    monkeypatch.setattr("weightloom.tasks.lines.FREE_BYTES", 20_000)
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as file:
        file.write(b"task,x,y\n" + line * (600_000 // len(line)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"unpacks to more than 100 times|blank|line of more"):
        load_table(tmp_path / "bomb.csv.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000


def test_a_long_task_among_short_ones_makes_no_other_longer(tmp_path):
    lines = [f"long,{row},1" for row in range(20_000)] + [f"{row // 5},1,2" for row in range(5_000)]
    (tmp_path / "table.csv").write_text("\n".join(["task,x,y", *lines]))
    pool = load_table(tmp_path / "table.csv").pool
    assert pool.x.numel() + pool.y.numel() == 2 * len(lines)
    parts = load_table(tmp_path / "table.csv").split()
    assert sum(part.x.numel() for part in parts) == len(lines)
    drawn = PointTasks(pool, shots=4, queries=3).sample(300, torch.Generator().manual_seed(0))
    assert drawn.support_x.shape == (300, 4, 1)


@pytest.mark.parametrize("grown", ["rows", "columns", "tasks"])
def test_reading_twice_as_much_takes_twice_as_long(tmp_path, grown):
    def spent(size):
        columns, rows, length = (size * 40, 8, 8) if grown == "columns" else (3, size * 40, 4)
        length = rows if grown == "rows" else length
        names = ",".join(f"c{column}" for column in range(columns))
        cells = ",".join(["1"] * columns)
        path = tmp_path / f"{size}.csv"
        path.write_text(
            "\n".join([f"task,{names}", *(f"{row // length},{cells}" for row in range(rows))])
        )
        taken = []
        for _ in range(5):
            start = time.process_time()
            load_table(path)
            taken.append(time.process_time() - start)
        return min(taken)

    assert spent(240) < 2.8 * spent(120)  # four times as long where a cell looks at all others


def test_points_are_shuffled_some_tasks_at_a_time_and_drawn_as_at_once(monkeypatch):
    counts = torch.tensor([400, 7, 90])
    pool = PointPool(
        torch.rand(497, 1),
        torch.rand(497, 1),
        counts,
        tuple("abc"),
        torch.zeros(3, dtype=torch.long),
    )
    source = PointTasks(pool, shots=5, queries=4, fewest_shots=2)
    whole = source.sample(64, torch.Generator().manual_seed(0))
    monkeypatch.setattr("weightloom.tasks.points.MOST_SHUFFLED", 1600)
    parts = source.sample(64, torch.Generator().manual_seed(0))
    assert torch.equal(parts.support_x, whole.support_x) and torch.equal(
        parts.query_y, whole.query_y
    )


# Support sets

LABELS = [
    [0, 1],
    [10**12, -1],
    [0.0, 1.0],
    [0.5, 1.5],
    [math.nan, 1.0],
    ["a", "b"],
    [True, False],
    ["", "a"],
]
DTYPES = [
    "<f4",
    "<f8",
    ">f4",
    "<f2",
    "i1",
    "u1",
    "<i8",
    "<u8",
    "?",
    "<c8",
    "<M8[s]",
    "U3",
    "S3",
    "O",
    "V4",
]


@many
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([(2, 3), (2,), (0, 3), (3, 3), (), (2, 4), (2, 3, 1), (1, 2, 3)]),
    st.sampled_from(LABELS),
    st.sampled_from(
        [("support_x", "support_y")] * 4 + [("x", "support_y"), ("x", "y"), ("support_x", "x")]
    ),
    DAMAGE,
    st.floats(0, 1),
)
@example("<f4", (2, 3), [10**12, -1], ("support_x", "support_y"), "none", 0.0)
def test_arrays_are_taken_as_they_stand_in_the_file_or_refused(
    tmp_path, dtype, shape, labels, names, damage, at
):
    x, y = np.ones(shape).astype(dtype), np.array(labels)
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x, y), strict=True)))
    path = tmp_path / "a.npz"
    path.write_bytes(damaged(path.read_bytes(), damage, at))
    kind = Arrays((3,))
    found = outcome(read_support, path, kind, "classification")
    if found is None:
        return
    assert len(found.x) == len(found.y) == len(x) == 2 and names[1] == "support_y"
    assert found.y == list(labels) and all(isinstance(label, str | int) for label in found.y)
    encoded = outcome(kind.encode, found.x, found.names)
    if encoded is not None:
        assert shape == (2, 3) and x.dtype.kind in "biuf" and torch.equal(encoded, torch.ones(2, 3))


def claimed(shape, dtype="<f8", holds=16):
    """An array whose header says more than it holds."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(holds)


class Marked:
    """A pickle that leaves a mark where it is opened."""

    def __reduce__(self):
        return os.mkdir, ("opened",)


@pytest.mark.parametrize(
    "member",
    [
        claimed("(1000000000000,)"),
        claimed("(2, 10**12)"),
        claimed("(2, 1000000000000)"),
        claimed("(-2,)"),
        claimed("(2, -1, -1)"),
        claimed("(2,)", "|O"),
        claimed("(2,)", "V1000000000"),
        claimed("(2,)", "U1000000000"),
        claimed("(0, 99999999999999999999)"),
        claimed("(((" * 900),
        b"\x93NUMPY\x09\x00",
        b"",
        bytes(9 * FREE_BYTES),
    ],
    ids=range(13),
)
def test_an_array_that_says_more_than_it_holds_is_refused_before_it_is_held(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("support_x.npy", member)
        file.writestr("support_y.npy", claimed("(2,)", "<i8"))
    tracemalloc.start()
    assert outcome(read_support, tmp_path / "a.npz", Arrays((3,)), "classification") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.empty(2, dtype=object)
    x[:] = [Marked(), Marked()]
    np.savez("a.npz", support_x=x, support_y=np.arange(2))
    assert outcome(read_support, "a.npz", Arrays((3,)), "classification") is None
    assert not (tmp_path / "opened").exists()


VALUES = st.recursive(
    st.sampled_from(
        [1, 2.5, -1, 10**400, math.nan, math.inf, None, True, "a", "", "1", "1_0", "x" * 500]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "x"]), inner)
    ),
    max_leaves=4,
)


@many
@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"x": VALUES, "label": VALUES, "y": VALUES}),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["classification", "regression"]),
    ENCODINGS,
    DAMAGE,
    st.floats(0, 1),
)
def test_objects_of_a_file_are_taken_as_they_stand_or_refused(
    tmp_path, rows, kind, encoding, damage, at
):
    content = damaged("\n".join(json.dumps(row) for row in rows).encode(encoding), damage, at)
    (tmp_path / "a.jsonl").write_bytes(content)
    inputs, targets = Numbers(("x",)), Targets(("y",))
    found = outcome(read_support, tmp_path / "a.jsonl", inputs, kind, targets)
    if found is None:
        return
    lines = [json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    assert len(found.x) == len(lines)
    column = "label" if kind == "classification" else "y"
    for line, x, y in zip(lines, found.x, found.y, strict=True):
        named = ["x"] if "x" in line else [name for name in line if name != column]
        assert x == [float(line[name]) for name in named]
        assert y == (line["label"] if kind == "classification" else [float(line["y"])])
    if kind == "regression" and outcome(targets.encode, found.y) is None:
        assert not all(math.isfinite(float(line["y"])) for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        '{"x": ' + "[" * 100_000,
        '{"x": 1, "label": "a", "label": "b"}',
        '{"x": ' + "9" * 5000 + "}",
        "[1, 2]",
        "null",
        '{"": 1, "label": "a"}',
        '{"x": 1, "label": ["a"]}',
        '{"x": 1, "label": 1.5}',
        '{"x": 1, "label": NaN}',
        '{"x": 1e999, "label": "a"}',
    ],
    ids=range(10),
)
def test_a_line_that_is_no_example_is_refused(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    assert outcome(read_support, tmp_path / "a.jsonl", Numbers(("x",)), "classification") is None


def test_more_examples_than_fit_are_refused_and_so_are_more_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr("weightloom.apps.fewshot.support.MOST_SHOWN", 3)
    monkeypatch.setattr("weightloom.apps.fewshot.support.MOST_ASKED", 5)
    inputs = Numbers(("x",))
    for rows in range(1, 8):
        (tmp_path / "a.csv").write_text("x,label\n" + "1,a\n" * rows)
        (tmp_path / "b.csv").write_text("x\n" + "1\n" * rows)
        assert (outcome(read_support, tmp_path / "a.csv", inputs, "classification") is None) == (
            rows > 3
        )
        assert (outcome(read_inputs, tmp_path / "b.csv", inputs) is None) == (rows > 5)
        assert (outcome(read_inputs, [[1.0]] * rows, inputs) is None) == (rows > 5)


@pytest.mark.parametrize(
    "typed",
    [
        "~nobody-of-this-name/a",
        "a" * 400,
        "a\0b",
        "pipe.csv",
        "/dev/zero",
        ".",
        "folder.npz",
        "gone.jsonl",
    ],
)
def test_a_path_that_is_no_file_is_refused(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    assert outcome(load_table, typed) is None
    assert outcome(read_support, typed, Numbers(("x",)), "regression") is None
    assert outcome(read_support, typed, Pictures(3, 8), "classification") is None
    assert outcome(folder_room.picture, typed, 8, 3) is None
    assert outcome(Sounds().one, typed, "a") is None


# Pictures and sounds

MODES = {
    "1": "png",
    "L": "png",
    "LA": "png",
    "P": "gif",
    "RGB": "jpg",
    "RGBA": "webp",
    "CMYK": "jpg",
    "I;16": "png",
}
MODES |= {"F": "tiff", "YCbCr": "jpg", "I": "tiff", "LAB": "tiff"}


@settings(many, max_examples=150)
@given(
    st.sampled_from([*MODES]),
    st.sampled_from([(1, 1), (2, 3), (40, 1), (1, 200), (17, 16)]),
    st.integers(0, 9),
    st.sampled_from(["none"] * 3 + ["cut", "flip", "twice"]),
    st.floats(0, 1),
)
def test_a_picture_is_made_the_same_of_in_a_folder_and_alone_or_is_skipped_in_one_and_refused_in_the_other(
    tmp_path, mode, size, orientation, damage, at
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    grey = Image.fromarray(noise)
    picture = (
        Image.fromarray(noise.astype(np.uint16) * 257)
        if mode == "I;16"
        else grey.convert("RGB").convert(mode)
        if mode not in ("F", "I", "LAB")
        else grey.convert(mode)
        if mode != "LAB"
        else Image.new("LAB", size)
    )
    path = tmp_path / "class" / f"a.{MODES[mode]}"
    path.parent.mkdir(exist_ok=True)
    for before in path.parent.iterdir():
        before.unlink()
    options = {"exif": exif} if MODES[mode] in ("png", "jpg", "webp") else {}
    options |= {"save_all": True, "append_images": [picture, picture]} if mode == "P" else {}
    picture.save(path, **options)
    path.write_bytes(damaged(path.read_bytes(), damage, at))
    alone = outcome(folder_room.picture, path, 8, 3)
    loaded = outcome(load_folder, tmp_path, size=8, channels=3, fewest=1, ways=1)
    assert (alone is None) == (loaded is None)
    if alone is not None:
        assert torch.equal(loaded.pool.examples[0, 0], alone) and not loaded.skipped
    elif damage == "none":
        pytest.fail("a whole picture was refused")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "GIF", "TIFF", "JPEG", "WEBP"])
def test_a_picture_of_more_than_50_megapixels_is_said_before_it_is_decoded(
    tmp_path, kind, monkeypatch
):
    side = 8_000
    small = io.BytesIO()
    Image.new("L" if kind != "WEBP" else "RGB", (16, 16)).save(small, kind)
    content = bytearray(small.getvalue())
    if kind == "PNG":  # headers alone say so
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", side, side)
    elif kind == "PPM":
        content = bytearray(b"P5 8000 8000 255\n" + bytes(9))
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", side, side)
    elif kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", side, side)
    elif kind == "WEBP":
        content[26:30] = struct.pack("<HH", side, side)
    else:
        Image.new("1", (side, side)).save(tmp_path / "a", kind)
        content = bytearray((tmp_path / "a").read_bytes())
    (tmp_path / "a").write_bytes(content)
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
    with pytest.raises(
        DataError, match=r"it has 64 megapixels.*`WEIGHTLOOM_MAX_MEGAPIXELS=64` allows it"
    ):
        folder_room.picture(tmp_path / "a", 8, 3)
    assert not decoded


def test_pictures_without_a_pixel_and_closed_ones_are_refused(tmp_path):
    closed = Image.new("L", (9, 9))
    closed.close()
    for picture in (Image.new("RGB", (0, 5)), Image.new("L", (0, 0)), closed):
        assert outcome(folder_room.picture, picture, 8, 3) is None
    (tmp_path / "a.ppm").write_bytes(b"P6 0 0 255\n")
    assert outcome(folder_room.picture, tmp_path / "a.ppm", 8, 3) is None


def test_an_opened_picture_is_left_as_it_was(tmp_path):
    Image.effect_noise((200, 100), 50).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        folder_room.picture(opened, 8, 3)
        assert opened.size == (200, 100) and opened.mode == "L"


@settings(many, max_examples=100)
@given(
    st.sampled_from([8000] * 3 + [1, 16000, 2**28]),
    st.sampled_from([2] * 3 + [1, 3, 4]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 100, 9000]),
    st.sampled_from(["none"] * 2 + ["cut", "flip", "twice", "claims"]),
    st.floats(0, 1),
)
def test_a_sound_is_read_whole_or_refused(tmp_path, rate, width, channels, frames, damage, at):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(range(1, 1 + width * channels)) * frames)
    content = bytearray(damaged(path.read_bytes(), damage, at))
    if damage == "claims":
        content[40:44] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)
    tracemalloc.start()
    made = outcome(Sounds().one, str(path), "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(content) + 2_000_000
    if made is not None and damage == "none":
        assert (rate, width) == (8000, 2) and frames and made.shape == (1, 32, 32)


# From the command line


def refused(words, capsys):
    """What the command said; it left with 2, and said it in one sentence or two."""
    with pytest.raises(SystemExit) as left:
        main(words)
    told = capsys.readouterr().err
    assert left.value.code == 2 and "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: ") or "Value error" in told
    return told


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"train": "abcdef"}, "0 classes with enough pictures for test"),
        ({"train": "abcdef", "val": "gh"}, "0 classes with enough pictures for test"),
        ({"test": "abcdef"}, "0 classes with enough pictures for train"),
        ({"train": "abcde", "test": "f"}, "1 classes with enough pictures for test"),
        ({"train": ""}, "has 0 classes"),
    ],
)
def test_a_folder_with_one_part_alone_is_refused_and_the_advice_works(
    tmp_path, monkeypatch, capsys, parts, said
):
    monkeypatch.chdir(tmp_path)
    for part, classes in parts.items():
        (tmp_path / "birds" / part).mkdir(parents=True)
        for name in classes:
            (tmp_path / "birds" / part / name).mkdir()
            for shot in range(2):
                Image.new("L", (9, 9), 20 * ord(name) % 255).save(
                    tmp_path / "birds" / part / name / f"{shot}.png"
                )
    words = [
        "--ways",
        "2",
        "--train-ways",
        "2",
        "--shots",
        "1",
        "--queries",
        "1",
        "--steps",
        "1",
        "--test-tasks",
        "2",
    ]
    told = refused(["fewshot", "--data", "birds", *words, "--run", "run"], capsys)
    assert said in told
    if "`--data birds/train`" in told and parts == {"train": "abcdef"}:
        few = {"ways": (2,), "train_ways": 2, "shots": (1,), "queries": 1}
        pools = load_pools(FewShotConfig.from_dict({"data": "birds/train", **few}).resolved())
        assert len(pools.train.names) >= 2 and len(pools.test.names) >= 2


@pytest.mark.parametrize(
    "name", ["empty.csv", "wide.csv", "blank.csv", "bomb.csv.gz", "pipe.csv", "one.csv", "nan.csv"]
)
def test_a_table_that_does_not_fit_ends_in_a_sentence(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    contents = {
        "empty.csv": b"",
        "wide.csv": b"task,y" + b",a" * 20_000,
        "blank.csv": b"task,x,y\n" + b"\n" * 200_000,
        "bomb.csv.gz": gzip.compress(b"task,x,y\n" + b"\n" * 2_000_000),
        "one.csv": b"task,x,y\n" + b"a,1,2\n" * 50,
        "nan.csv": b"task,x,y\n" + b"a,nan,2\n" * 50,
    }
    if name in contents:
        (tmp_path / name).write_bytes(contents[name])
    else:
        os.mkfifo(name)
    refused(["fewshot", "--data", name, "--steps", "1", "--run", "run"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", ["1", "0", "-7", "1000000000000", "²", "wide"])
def test_help_fits_any_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    main(["fewshot", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 50 < len(lines) < 600 and max(map(len, lines)) <= 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step on sinusoids."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    words = ["--steps", "1", "--test-tasks", "6", "--run", str(folder), "--quiet"]
    main(["fewshot", "--data", "sinusoid", *words, "--comparators"])
    return folder


def test_only_tasks_that_were_judged_are_exported_and_no_other_is_drawn(
    run, tmp_path, monkeypatch, capsys
):
    drawn = []
    sample = SinusoidTasks.sample

    def counted(self, tasks, generator):
        drawn.append(tasks)
        return sample(self, tasks, generator)

    monkeypatch.setattr(SinusoidTasks, "sample", counted)
    for task in ("6", "1000000000", "9" * 400):
        told = refused(["export", str(run), "--task", task, "--out", str(tmp_path)], capsys)
        assert "judged on 6 tasks, numbered from 0 to 5" in told
    main(["export", str(run), "--task", "5", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "network.json").exists() and max(drawn) == 6


TABLES = [
    "",
    "x",
    "x,y",
    "x,y\n1",
    "x,y\n1,2,3",
    "x,y\na,b",
    "x,y\n1,nan",
    "x,y\n1e999,1",
    "x,x,y\n1,1,1",
    "y\n1",
]
TABLES += [
    "x,y\n" + "\n" * 200_000,
    "x,y\n" + "1,2\n" * 10_001,
    '"x,y\n1,2',
    "x,y\n1,2\x00",
    "x" * 2_000_000,
]
TABLES += ["\udcff,y\n1,1", "x,,y\n1,2,3", ",".join(["x"] * 20_000), "x,y\n1_0,2", "label,x\na,1"]
TABLES += ["x,y\n" + "9" * 200_000 + ",1"]
OBJECTS = [
    "",
    "[]",
    "{",
    "{}",
    "null",
    '{"x": 1}',
    '{"x": [1, 2], "y": 1}',
    '{"x": null, "y": 1}',
    "[" * 200_000,
]
OBJECTS += [
    '{"x": 1, "y": "a"}',
    '{"x": 1, "y": [1, 2]}',
    '{"x": 1, "y": 1e999}',
    '{"x": 1, "y": NaN}',
    '"x"',
]
OBJECTS += [
    '{"x": "1_0", "y": 1}',
    '{"x": 1, "x": 2, "y": 1}',
    '{"x": 1, "y": ' + "9" * 5000 + "}",
    "\udcff",
]
OBJECTS += ['{"x": {"a": 1}, "y": 1}']
HOSTILE = {
    "a.csv": TABLES,
    "a.jsonl": OBJECTS,
    "a.npz": ["", "PK", "PK\x03\x04" + "a" * 99, "x,y\n1,2"],
    "a.txt": ["x,y\n1,2"],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y\n1,2"),
        ("a.csv", "\ufeffx;y\r\n1;2\r\n\r\n2;3"),
        ("a.jsonl", '{"x": 1, "y": 2}\n\n{"x": 2, "y": 3}'),
    ],
)
def test_a_support_set_that_fits_is_adapted_to(run, tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    main(["adapt", str(run), name])
    assert f"{1 + text.count('3')} points, predicting y" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name, texts in HOSTILE.items() for number in range(len(texts))],
)
def test_a_support_set_that_does_not_fit_ends_in_a_sentence(
    run, tmp_path, monkeypatch, capsys, name, number
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(HOSTILE[name][number].encode(errors="surrogateescape"))
    refused(["adapt", str(run), name], capsys)


X, Y = np.zeros((3, 1), "f4"), np.zeros(3, "f4")
ARRAYS = {
    "objects": {"support_x": np.array([None] * 3), "support_y": Y},
    "no rows": {"support_x": X[:0], "support_y": Y[:0]},
    "no targets": {"support_x": X},
    "another name": {"inputs": X, "support_y": Y},
    "fewer targets": {"support_x": X, "support_y": Y[:2]},
    "one number": {"support_x": np.float32(1), "support_y": Y},
    "text": {"support_x": np.array(["a"] * 3), "support_y": Y},
    "text targets": {"support_x": X, "support_y": np.array(["a"] * 3)},
    "complex": {"support_x": X.astype("c8"), "support_y": Y},
    "complex targets": {"support_x": X, "support_y": Y.astype("c8")},
    "dates": {"support_x": X.astype("M8[s]"), "support_y": Y},
    "records": {"support_x": np.zeros(3, "f4,i4"), "support_y": Y},
    "nan": {"support_x": X * np.nan, "support_y": Y},
    "nan targets": {"support_x": X, "support_y": Y * np.nan},
    "infinite": {"support_x": X + np.inf, "support_y": Y},
    "too wide": {"support_x": np.zeros((3, 2)), "support_y": Y},
    "too many targets": {"support_x": X, "support_y": np.zeros((3, 2))},
    "too many rows": {"support_x": np.zeros((10_001, 1)), "support_y": np.zeros(10_001)},
    "zeros without end": {
        "support_x": np.zeros((90_000, 1000), "u1"),
        "support_y": np.zeros(90_000),
    },
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit_end_in_a_sentence(run, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    np.savez_compressed("a.npz", **ARRAYS[name])
    refused(["adapt", str(run), "a.npz"], capsys)
    np.savez_compressed("good.npz", support_x=X, support_y=Y)
    main(["adapt", str(run), "good.npz"])
    assert "3 points, predicting y" in capsys.readouterr().out
