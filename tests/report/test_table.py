import csv
import io
import json

import pytest
from made_up import PROTOCOL_HASH, make_config

from sid_core.errors import UserError
from sid_core.pipeline.inputs import Inputs
from sid_core.report import columns, entries, summary, table

COLUMNS = (
    "run,label,kind,teacher,method,objective,strategy,kappa_fake_train,kappa_fake_eval,kappa_teacher,alpha,seed,solver,steps,nfe,train_kimg,whole_kimg,"
    "network_passes,train_s,train_gpu_s,real_images,samples,fid,fid_se,fid_low,"
    "fid_high,fid_inf,clip,clip_se,clip_low,clip_high,kid,precision,recall,density,coverage,cmmd,vendi,diversity,fid_teacher,patch_fid,fd_dinov2,hps,pickscore,imagereward,geneval,dpg,"
    "teacher_eps_error,images_per_s,protocol,protocol_hash,not_comparable,generator_sha256"
)


def read(config, folder):
    return table.make_rows(config, folder, table.read_scores(Inputs.finished(config, folder).scores))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_row_of_an_earlier_point_shows_its_images_and_the_whole_training(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    chosen = {"rule": "lowest fid_proxy", "nimg": 9600, "value": 1.0}
    edit(folder / "runs" / "lsg-3" / "generator" / "generator.json", train_kimg=9.6, whole_kimg=12.8, chosen=chosen)
    rows = {row.run: row for row in read(config, folder)}
    assert (rows["lsg-3"].train_kimg, rows["lsg-3"].whole_kimg) == (9.6, 12.8)
    kimg = {one.row.run: columns.kimg(one) for one in entries.make_entries(config, list(rows.values()), {}, {})}
    assert (kimg["lsg-1.5"], kimg["lsg-3"]) == ("12.8", "9.6 of 12.8")


def test_rows_of_runs_with_real_images_state_it(make_experiment):
    values = make_config().distill.model_dump(mode="json") | {"real": {}}
    extra = [{"strategy": "long", "scale": 2.5, "adversarial": {"start_nimg": 0}}]
    config = make_config(extra_runs=extra, distill=values)
    rows = read(config, make_experiment(config))
    assert {row.run: row.real_images for row in rows if row.kind in ("generator", "vae")} == {
        "lsg-1.5": "no",
        "lsg-3": "no",
        "long-2.5-adversarial": "yes",
        "vae": None,
    }
    made = entries.make_entries(config, rows, {}, {})
    scores = {"lsg-3": {"not_computed": {}}}
    (note,) = [note for note in summary.notes(made, scores) if "real images in" in note]
    assert note == (
        "1 of the generators saw real images in training: SiD, long guidance κ = 2.5, GAN, uses real images. "
        "All others are data-free."
    )


def test_to_csv_writes_the_columns_and_unrounded_numbers(make_experiment):
    config = make_config(extra_runs=[{"strategy": "long", "scale": 2.5}])
    text = table.to_csv(read(config, make_experiment(config)))
    assert text.splitlines()[0] == COLUMNS
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows)[:7] == [
        "lsg-1.5",
        "lsg-3",
        "long-2.5",
        "teacher-dpm-solver-karras-cfg1-8steps",
        "teacher-dpm-solver-karras-cfg3-8steps",
        "vae",
        "real",
    ]
    ours = rows["lsg-1.5"]
    assert [ours[key] for key in ("kind", "strategy", "seed", "nfe", "train_kimg")] == [
        "generator",
        "lsg",
        "0",
        "1",
        "12.8",
    ]
    assert [float(ours[key]) for key in ("fid_low", "fid_high")] == [29.1, 30.8]
    assert (float(ours["fid"]), float(ours["images_per_s"]), ours["teacher_eps_error"]) == (30.0, 2100.4, "")
    assert [ours["protocol"], ours["protocol_hash"], ours["generator_sha256"]] == ["shapes", PROTOCOL_HASH, "a" * 64]
    kappas = [[row[f"kappa_{k}"] for k in ("fake_train", "fake_eval", "teacher")] for row in rows.values()]
    assert kappas[1:4] == [["3.0"] * 3, ["1.0", "1.0", "2.5"], ["", "", "1.0"]]
    assert rows["real"]["images_per_s"] == ""
    columns = ("solver", "steps", "nfe")
    assert [[row[key] for key in columns] for row in list(rows.values())[2:7]] == [
        ["", "1", "1"],
        ["dpm-solver-karras", "8", "8"],
        ["dpm-solver-karras", "8", "16"],
        ["", "", "0"],
        ["", "", "0"],
    ]
    assert [rows[name]["kind"] for name in ("teacher-dpm-solver-karras-cfg3-8steps", "vae", "real")] == [
        "teacher",
        "vae",
        "real",
    ]


IMPORTS = {
    "teachers": {"other": {"source": "local", "path": "/models/sd21-base"}},
    "imports": [
        {"name": "official-2", "file": "a.pkl", "scale": 2, "train_kimg": 4812},
        {"name": "official-3", "file": "b.pkl", "scale": 3, "train_kimg": 6144, "teacher": "other"},
    ],
}


def test_make_rows_of_imports_names_their_own_teacher(make_experiment):
    config = make_config(**IMPORTS)
    rows = {row.run: row for row in read(config, make_experiment(config))}
    assert (rows["official-2"].kind, rows["official-2"].teacher) == ("generator", "embedded")
    assert (rows["official-3"].teacher, rows["official-3"].kappa_fake_train) == ("sd21-base", 3.0)


def test_published_rows_have_a_protocol_and_no_hash():
    rows = table.published_rows("protocol shapes")
    assert len(rows) == 9
    assert len({row.run for row in rows}) == 9
    assert {(row.kind, row.protocol, row.protocol_hash, row.samples) for row in rows} == {
        ("published", "coco2014-30k", None, 30_000)
    }
    best = min(rows, key=lambda row: row.measured["fid"])
    assert (best.teacher, best.kappa_teacher, best.train_kimg, *best.measured.values()) == (
        "sd15",
        1.5,
        18_789,
        8.15,
        0.304,
    )


def test_read_scores_of_two_protocols_names_both(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    other = "fedcba" * 10
    edit(folder / "baselines" / "vae" / "score.json", protocol_hash=other, protocol={"name": "old"})
    with pytest.raises(UserError, match="not comparable") as error:
        table.read_scores(Inputs.finished(config, folder).scores)
    for part in ("lsg-1.5", "vae", PROTOCOL_HASH[:12], other[:12], "by old (hash", "name: shapes, old"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(path.read_text()[:40]), "not valid JSON"),
        (lambda path: path.write_text('{"fid": 3}'), "has no samples, fid_se"),
        (lambda path: path.write_text("[]"), "not a score"),
        (lambda path: edit(path, fid=float("nan")), "fid=nan"),
        (lambda path: edit(path, clip=None), "clip=None"),
        (lambda path: edit(path, protocol={}), "without name"),
    ],
)
def test_read_scores_of_a_damaged_score_names_it(make_experiment, damage, message):
    config = make_config()
    path = make_experiment(config) / "runs" / "lsg-3" / "score.json"
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        table.read_scores(Inputs.finished(config, path.parents[2]).scores)
    assert str(path) in str(error.value)


def test_make_rows_of_other_settings_names_the_key(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    path = folder / "runs" / "lsg-3" / "generator" / "generator.json"
    record = json.loads(path.read_text())
    edit(path, run=record["run"] | {"alpha": 1.4})
    with pytest.raises(UserError, match=r"alpha=1\.4: expected 1\.2") as error:
        read(config, folder)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read(config, folder)


def test_make_rows_of_other_weights_names_them(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    edit(folder / "runs" / "lsg-3" / "score.json", generator_sha256="b" * 64)
    with pytest.raises(UserError, match=r"not the scored weights \(bbbb.*samples of lsg-3"):
        read(config, folder)
