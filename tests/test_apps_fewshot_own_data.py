"""A new user's own folder of pictures and own table of tasks, from the command to the report."""

import json

import numpy as np
import pytest

from weightloom.cli import main

FEW = ["--steps", "4", "--test-tasks", "6", "--run", "run"]
METHODS = ["--backbone", "none", "--comparators", "protonet", "centroid"]


@pytest.fixture
def pictures(tmp_path):
    """Seven classes of pictures of mixed sizes, modes and formats, and things that are no pictures."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    rng = np.random.default_rng(0)
    kinds = [
        ("png", "RGB"),
        ("jpg", "L"),
        ("webp", "RGBA"),
        ("bmp", "RGB"),
        ("gif", "P"),
        ("tiff", "RGB"),
    ]
    for number in range(7):
        folder = tmp_path / "pictures" / f"class {number}"
        folder.mkdir(parents=True)
        for shot in range(8):
            suffix, mode = kinds[(number + shot) % len(kinds)]
            height, width = rng.integers(20, 90, 2)
            tint = np.full((height, width, 3), 36 * number) + rng.integers(
                0, 30, (height, width, 3)
            )
            picture = image.fromarray(tint.astype(np.uint8)).convert(
                "RGB" if suffix == "jpg" and mode != "L" else mode
            )
            picture.save(folder / f"{shot}.{suffix}")
    (tmp_path / "pictures" / "class 0" / "notes.txt").write_text("not a picture")
    whole = (tmp_path / "pictures" / "class 1" / "0.jpg").read_bytes()
    (tmp_path / "pictures" / "class 1" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    lonely = tmp_path / "pictures" / "too few"
    lonely.mkdir()
    (lonely / "one.png").write_bytes((tmp_path / "pictures" / "class 0" / "0.png").read_bytes())
    return tmp_path / "pictures"


def test_a_folder_of_mixed_pictures_is_learned_from_and_what_is_skipped_is_said(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(
        [
            "fewshot",
            "--data",
            "pictures",
            "--ways",
            "2",
            "--shots",
            "1",
            "3",
            "--queries",
            "3",
            *FEW,
            *METHODS,
        ]
    )
    told = capsys.readouterr().err
    assert (
        "7 classes of pictures, made 32x32 with 3 channels: 3 for train, 2 for validation, 2 for "
        "test" in told
    )
    for skipped in ("notes.txt", "torn.jpg", "too few"):
        assert f"{skipped}: " in told
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert {row["setting"] for row in record["scores"]} == {"2-way 1-shot", "2-way 3-shot"}
    assert {row["method"] for row in record["scores"]} >= {"hypernetwork", "protonet", "centroid"}
    centroid = [row["mean"] for row in record["scores"] if row["method"] == "centroid"]
    assert min(centroid) > 0.9  # classes differ by their tint
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    main(["eval", "run", "--ways", "2", "--shots", "2", "--test-tasks", "4"])
    assert "2-way 2-shot" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tasks.csv", "tasks.csv.gz"])
def test_a_table_with_a_task_column_is_learned_from_and_short_tasks_are_named(
    tmp_path, monkeypatch, capsys, name
):
    import gzip

    rng = np.random.default_rng(0)
    lines = ["task,age,dose,y"]
    for task in range(12):
        slope = rng.normal()
        for _ in range(3 if task == 5 else 14):
            age, dose = rng.normal(size=2)
            lines.append(f"patient {task},{age:.4f},{dose:.4f},{slope * age + dose:.4f}")
    content = "\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    monkeypatch.chdir(tmp_path)
    main(["fewshot", "--data", name, "--shots", "5", *FEW, "--comparators", "ridge", "cnp"])
    told = capsys.readouterr()
    assert "skipped patient 5: has 3 rows" in told.err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert [row["method"] for row in record["scores"]][:3] == ["hypernetwork", "ridge", "cnp"]
