import json
import math
import resource
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tables import TINY, mixed, numbers

from vae_anomaly import persistence
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import ModelFileError
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.persistence import FORMAT_VERSION, load_model, save_model
from vae_anomaly.priors import PRIORS
from vae_anomaly.scores import scores_for

NAME = "pump.safetensors"


@pytest.fixture(scope="module")
def detector():
    return VAEDetector(**TINY).fit(mixed())


@pytest.fixture
def path(detector, tmp_path):
    detector.save(tmp_path / NAME)
    return tmp_path / NAME


def refused(sentence):
    return pytest.raises(ModelFileError, match=sentence)


# There and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scores_for(images=False))
def test_scores_and_contributions_come_back_bit_for_bit(detector, path, name):
    new, copy = mixed(50, seed=1), load(path)
    assert np.array_equal(copy.anomaly_score(new, score_name=name), detector.anomaly_score(new, score_name=name))
    assert np.array_equal(copy.explain(new, score_name=name), detector.explain(new, score_name=name))


def test_a_model_loads_where_its_device_is_not(tmp_path):
    """A model fitted with device="cuda:7" is as good as any on a machine without."""
    fitted = VAEDetector(**TINY).fit(mixed())
    fitted.set_params(device="cuda:7").save(tmp_path / NAME)
    copy = load(tmp_path / NAME, device="cpu")
    assert np.array_equal(copy.anomaly_score(mixed(20, seed=1)), fitted.anomaly_score(mixed(20, seed=1)))


def test_a_device_and_sequences_of_any_kind_are_saved(tmp_path):
    options = {"hidden": np.array([16]), "flips": set(), "device": torch.device("cpu")}
    fitted = VAEDetector(**{**TINY, **options}).fit(mixed())
    fitted.save(tmp_path / NAME)
    copy = load(tmp_path / NAME, device=torch.device("cpu"))
    assert (copy.hidden, copy.flips, copy.device) == ((16,), (), "cpu")
    assert np.array_equal(copy.anomaly_score(mixed(20, seed=1)), fitted.anomaly_score(mixed(20, seed=1)))
    with pytest.raises(ValueError, match="device=None must be a name such as 'auto', 'cpu' or 'cuda'"):
        load(tmp_path / NAME, device=None)


@pytest.mark.parametrize(
    "params",
    [
        {"n_estimators": 6},
        {"hidden": (8, 8)},
        {"n_mc": 3},
        {"prior": "vamp"},
        {"likelihood": "gaussian"},
        {"score_name": "kl"},
        {"threshold": "elbow"},
        {"fpr": 5},
        {"max_steps": 0},
        {"random_state": np.random.RandomState(3)},
    ],
    ids=lambda params: next(iter(params)),
)
def test_parameters_set_after_fit_do_not_spoil_the_file(params, path, tmp_path):
    """Saving went through, and loading refused what was saved: the model was lost."""
    load(path).set_params(**params).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_everything_else_comes_back(detector, path):
    new, copy = mixed(50, seed=1), load(path)
    assert np.array_equal(copy.p_value(new), detector.p_value(new))
    assert np.array_equal(copy.predict(new), detector.predict(new))
    assert (copy.threshold_, copy.offset_) == (detector.threshold_, detector.offset_)
    assert copy.threshold_rule_ == detector.threshold_rule_
    assert np.array_equal(copy.calibration_scores_, detector.calibration_scores_)
    assert np.array_equal(copy.usual_shares_, detector.usual_shares_)
    assert np.array_equal(copy.active_units_, detector.active_units_)
    for field, values in vars(detector.history_).items():
        assert np.array_equal(getattr(copy.history_, field), values), field
    assert copy.get_params() == detector.get_params()
    assert copy.fitted_params_ == detector.fitted_params_ == detector.get_params()
    assert copy.schema_.columns == detector.schema_.columns
    assert copy.feature_names_in_.tolist() == detector.feature_names_in_.tolist()
    assert copy.n_features_in_ == detector.n_features_in_
    assert copy.n_rows_ == detector.n_rows_
    assert copy.seen_rows(mixed()) == detector.seen_rows(mixed())
    assert copy.sample(5).equals(detector.sample(5))


@pytest.mark.filterwarnings("ignore::vae_anomaly.errors.PosteriorCollapseWarning")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_likelihood_and_prior_come_back(likelihood, prior, tmp_path):
    columns = {"numbers": ["flow", "count"], "categories": ["valve", "mode"], "any": ["flow", "valve", "mode"]}
    rows = mixed()[columns[LIKELIHOODS[likelihood].columns]]
    detector = VAEDetector(**TINY, likelihood=likelihood, prior=prior, score_name="neg_elbo").fit(rows)
    detector.save(tmp_path / NAME)
    assert np.array_equal(load(tmp_path / NAME).anomaly_score(rows), detector.anomaly_score(rows))


def test_a_detector_of_arrays_comes_back(tmp_path):
    detector = VAEDetector(**TINY).fit(numbers())
    detector.save(tmp_path / NAME)
    copy = load(tmp_path / NAME)
    assert not hasattr(copy, "feature_names_in_")
    assert np.array_equal(copy.score_samples(numbers()), detector.score_samples(numbers()))


def test_a_calibration_is_saved(detector, path, tmp_path):
    copy = load(path).calibrate(mixed(100, seed=1), threshold="quantile", fpr=0.1)
    copy.save(tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    assert again.threshold_ == copy.threshold_ != detector.threshold_
    assert again.threshold_rule_ == copy.threshold_rule_
    assert (again.threshold_rule_["name"], again.threshold_rule_["fpr"]) == ("quantile", 0.1)


@pytest.fixture
def extrapolated(detector, path, tmp_path):
    """Model file whose threshold goes beyond the calibration rows."""
    copy = load(path).calibrate(mixed(800, seed=1), threshold="peaks_over_threshold", fpr=0.005)
    copy.save(tmp_path / NAME)
    return copy, tmp_path / NAME


def test_an_extrapolation_is_saved(extrapolated):
    saved, path = extrapolated
    beyond = saved.threshold_rule_["extrapolation"]
    assert beyond["threshold"] == saved.threshold_
    assert beyond["low"] < beyond["threshold"] < beyond["high"]
    assert load(path).threshold_rule_ == saved.threshold_rule_


@pytest.mark.filterwarnings("ignore::vae_anomaly.errors.CalibrationWarning")
def test_an_infinite_threshold_is_saved(tmp_path):
    VAEDetector(**TINY).fit(numbers(20)).save(tmp_path / NAME)
    assert load(tmp_path / NAME).threshold_ == math.inf


def test_a_loaded_detector_can_be_fitted_anew(path):
    assert np.array_equal(load(path).fit(mixed()).score_samples(mixed()), load(path).score_samples(mixed()))


def test_equal_fits_give_equal_bytes(detector, path, tmp_path):
    VAEDetector(**TINY).fit(mixed()).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    load(path).save(tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()


def test_a_random_state_is_saved_as_the_seed_that_it_gave(tmp_path):
    detector = VAEDetector(**TINY, random_state=np.random.RandomState(0)).fit(numbers())
    detector.save(tmp_path / NAME)
    copy = load(tmp_path / NAME)
    assert isinstance(copy.random_state, int)
    assert np.array_equal(copy.fit(numbers()).score_samples(numbers()), detector.score_samples(numbers()))


def test_notes_are_carried_along(detector, tmp_path):
    detector.save(tmp_path / NAME, notes={"data": "pump.csv", "n": 3})
    assert load(tmp_path / NAME).notes_ == {"data": "pump.csv", "n": 3}


def test_a_full_disk_is_an_error_of_the_system(detector, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            detector.save(tmp_path / "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_notes_come_back_as_json_has_them(detector, tmp_path):
    """Keys 9 and 10 are sorted otherwise than "9" and "10", so the file was refused as changed."""
    detector.save(tmp_path / NAME, notes={9: "nine", 10: ("ten", None)})
    assert load(tmp_path / NAME).notes_ == {"9": "nine", "10": ["ten", None]}


@pytest.mark.parametrize("notes", ["x", ["x"], 5, {"x": {"y"}}, {"x": np.int64(3)}], ids=repr)
def test_notes_that_no_file_can_hold_are_refused_before_it_is_written(detector, path, notes):
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"must be a dict of plain data, such as|not JSON serializable"):
        detector.save(path, notes=notes)
    assert path.read_bytes() == before


def test_only_a_fitted_detector_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        VAEDetector().save(tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def test_the_header_is_plain_json(path):
    header, tensors = load_model(path)
    json.dumps(header)
    assert header["format_version"] == FORMAT_VERSION
    assert len(header["checksum"]) == 64
    assert all(isinstance(array, np.ndarray) for array in tensors.values())


# Damaged, foreign and newer files ------------------------------------------------------------------------------------


def header_size(content):
    return 8 + int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("part", ["header", "tensors"])
def test_a_flipped_bit_is_found(path, part):
    content = path.read_bytes()
    first, last = (0, header_size(content)) if part == "header" else (header_size(content), len(content))
    for position in np.linspace(first, last - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with refused(NAME):
            load(path)


def test_a_changed_digit_that_leaves_the_number_is_found(path, detector):
    """0.30000000000000004 and 0.30000000000000003 are one number: the checksum over numbers cannot tell them apart."""
    detector.save(path, notes={"number": 0.30000000000000004})
    content = path.read_bytes()
    assert content.count(b"0.30000000000000004") == 1
    path.write_bytes(content.replace(b"0.30000000000000004", b"0.30000000000000003"))
    with refused("was damaged or changed after it was saved"):
        load(path)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.3, 0.5, 0.99, -1])
def test_a_truncated_file(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with refused(f"{NAME} is not a model file, or it is damaged or cut off"):
        load(path)


def test_bytes_at_the_end(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with refused(NAME):
        load(path)


def foreign(path):
    save_file({"a": np.zeros(3)}, str(path))


def with_document(text):
    return lambda path: save_file({"a": np.zeros(3)}, str(path), metadata={"vae_anomaly": text})


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (foreign, "is a safetensors file, but not a model of vae-anomaly"),
        (lambda path: path.write_text("row,anomaly_score\n1,2\n"), "is not a model file"),
        (lambda path: path.write_bytes(b"\x80\x04\x95\x0e\0\0\0\0\0\0\0cos\nsystem\n."), "is not a model file"),
        (lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"), "is not a model file"),
        (with_document("not JSON"), "is not a model file"),
        (with_document("5"), "has no format version"),
        (with_document('{"format_version": "1"}'), "has no format version"),
        (with_document("[" * 50_000), NAME),
    ],
    ids=["safetensors", "text", "pickle", "huge header", "no JSON", "number", "no version", "deep JSON"],
)
def test_foreign_files(tmp_path, write, sentence):
    write(tmp_path / NAME)
    with refused(sentence):
        load(tmp_path / NAME)


def test_a_missing_file(tmp_path):
    with refused(f"Model file '.*{NAME}' does not exist"):
        load(tmp_path / NAME)


def test_a_folder(tmp_path):
    with refused(str(tmp_path)):
        load(tmp_path)


def test_an_older_format(path, monkeypatch, detector):
    monkeypatch.setattr(persistence, "FORMAT_VERSION", FORMAT_VERSION - 1)
    detector.save(path)
    monkeypatch.undo()
    with refused(rf"has format {FORMAT_VERSION - 1}, and this version of vae-anomaly reads .*Fit it anew\."):
        load(path)


def test_a_newer_format(path, monkeypatch, detector):
    monkeypatch.setattr(persistence, "FORMAT_VERSION", FORMAT_VERSION + 1)
    detector.save(path)
    monkeypatch.undo()
    with refused(f"has format {FORMAT_VERSION + 1}, and this version of vae-anomaly reads format .*Upgrade"):
        load(path)


# Files that someone made up, checksum and all ------------------------------------------------------------------------


def forge(path, change):
    header, tensors = load_model(path)
    del header["checksum"], header["format_version"]
    change(header, tensors)
    save_model(path, header, tensors)


def put(*keys):
    """Change that sets ``header[k1][k2]... = value``."""
    *way, last, value = keys

    def change(header, tensors):
        for key in way:
            header = header[key]
        header[last] = value

    return change


def replace(name, array):
    """Change that sets a tensor."""
    return lambda header, tensors: tensors.update({name: array})


def test_an_unchanged_file_can_be_saved_again(path, detector):
    forge(path, lambda header, tensors: None)
    assert np.array_equal(load(path).score_samples(mixed()), detector.score_samples(mixed()))


@pytest.mark.parametrize(
    ("key", "what"),
    [("likelihood", "likelihood"), ("prior", "prior"), ("score_name", "score"), ("threshold", "threshold")],
)
@pytest.mark.parametrize("name", ["elbow", "torch.nn.Linear", "os.system", "__import__", "../evil.py", ["kl"], None, 5])
def test_names_are_looked_up_in_our_registries_only(path, key, what, name):
    forge(path, put("params", key, name))
    with refused(f"Unknown {what} {name!r}" if isinstance(name, str) else NAME):
        load(path)


def test_parameters_that_the_detector_does_not_have(path):
    forge(path, put("params", "__class__", "os.system"))
    with refused(NAME):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        put("params", "hidden", [50_000, 50_000]),
        put("params", "hidden", [10**9, 10**9]),
        put("params", "hidden", [10**30]),
        put("params", "hidden", [4] * 3000),
        put("architecture", "latent_dim", 10**6),
        put("architecture", "latent_dim", 10**12),
        put("architecture", "n_entries", 10**9),
    ],
    ids=["wide", "very wide", "beyond 64 bits", "deep", "latent", "very latent", "entries"],
)
def test_a_gigantic_network_is_refused_before_it_is_built(path, change):
    forge(path, change)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with refused(f"{NAME} does not hold a whole model"):
        load(path)
    assert time.perf_counter() - start < 3.0
    # In KiB on Linux; the first of these networks would take 10 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header.pop("schema"),
        lambda header, tensors: header.pop("params"),
        lambda header, tensors: tensors.clear(),
        lambda header, tensors: tensors.pop("eps"),
        put("schema", []),
        put("schema", 5),
        put("schema", 0, "kind", "evil"),
        put("schema", 0, "scale", None),
        put("schema", 0, "bends", [0.0]),
        put("schema", 0, "knots", ["1"]),
        put("schema", [5]),
        put("schema", 0, "name", {}),
        put("schema", 0, "low", "x"),
        put("schema", 0, "high", math.nan),
        put("schema", 0, "dtype", "text"),
        put("schema", 0, "remark", "odd"),
        put("schema", 0, "values", [1.0]),
        put("schema", 3, "values", [1.0, 2.0]),
        put("schema", 3, "values", []),
        put("params", "n_estimators", 5),
        put("params", "n_estimators", None),
        put("params", "hidden", ["16"]),
        put("params", "fpr", "all"),
        put("architecture", "latent_dim", 3),
        put("threshold", "value", None),
        put("threshold", "value", math.nan),
        put("threshold", "name", "elbow"),
        put("notes", 5),
        replace("eps", np.zeros((1, 1, 1), np.float32)),
        replace("usual_shares", np.zeros(3)),
        lambda header, tensors: tensors["ensemble.likelihood.padded"].__iadd__(10**6),
        lambda header, tensors: tensors["ensemble.likelihood.owner"].__iadd__(1),
        replace("row_hashes.training", np.array([2, 1], np.uint64)),
        replace("row_hashes.calibration", np.zeros(2, np.uint64)),
        replace("row_hashes.labels", np.zeros(1)),
        lambda header, tensors: tensors.pop("row_hashes.labels"),
        replace("calibration_scores", np.zeros(0)),
        replace("calibration_scores", np.zeros((2, 2))),
        replace("calibration_scores", np.array([1.0, math.nan])),
        replace("calibration_scores", np.zeros(3, np.int64)),
        lambda header, tensors: tensors["history.best"].__iadd__(10**6),
        lambda header, tensors: tensors["history.best"].__isub__(10**6),
        replace("history.best", np.zeros(())),
        replace("history.epoch", np.zeros(0)),
        replace("history.val_elbo", np.zeros(())),
        replace("history.val_kl", np.zeros((2, 9))),
    ],
    ids=[
        "no schema", "no params", "no tensors", "no eps", "empty schema", "schema of no columns", "kind", "scale",
        "bends", "knots", "column of no parts", "name", "low", "high", "real text", "remark", "values of a real column",
        "numbers of a text", "no values",
        "more members", "no members", "width of text", "fpr of text", "latent_dim", "no threshold", "NaN threshold",
        "threshold rule", "notes", "eps", "usual shares", "padding elsewhere", "owner elsewhere", "hashes out of order",
        "repeated hashes", "hashes of floats", "no hashes", "no calibration scores", "calibration shape",
        "calibration of NaN", "calibration of integers", "best check beyond", "best check before",
        "best check of floats", "no checks", "a number for a history", "members of a history",
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(path, change):
    forge(path, change)
    with refused(f"{NAME} does not hold a whole model"):
        load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(path, value):
    """Such a model was loaded, and flagged no row or every row."""
    names = [name for name, array in load_model(path)[1].items() if array.dtype.kind == "f"]
    assert {"eps", "calibration_scores", "usual_shares", "ensemble.exemplars", "history.val_elbo"} <= set(names)
    content = path.read_bytes()
    for name in names:
        path.write_bytes(content)
        forge(path, lambda header, tensors, name=name: tensors[name].__setitem__((..., -1), value))
        with refused(f"{NAME} does not hold a whole model: tensor '{name}' holds a number that is not finite"):
            load(path)


@pytest.mark.parametrize(
    "change",
    [
        put("threshold", "extrapolation", "threshold", 0.0),
        put("threshold", "extrapolation", "low", 1e9),
        put("threshold", "extrapolation", "shape_high", -9.0),
        put("threshold", "extrapolation", "shape", math.nan),
        put("threshold", "extrapolation", "n_excesses", 3),
        put("threshold", "extrapolation", "level", 1e9),
        put("threshold", "extrapolation", {}),
        put("threshold", "extrapolation", 5),
        put("threshold", "value", 0.0),
        put("threshold", "name", "conformal"),
        lambda header, tensors: header["threshold"].pop("extrapolation"),
    ],
)
def test_an_extrapolation_that_does_not_fit_is_refused(extrapolated, change):
    _, path = extrapolated
    forge(path, change)
    with refused(f"{NAME} does not hold a whole model"):
        load(path)


@pytest.fixture
def chosen(detector, path):
    """Model file whose threshold was chosen on labels."""
    load(path).choose_threshold(mixed(50, seed=1), [0, 1] * 25, "cost", cost_miss=3.0).save(path)
    return path


def test_a_threshold_chosen_on_labels_is_saved(chosen):
    rule = load(chosen).threshold_rule_
    assert (rule["name"], rule["fpr"], rule["parameters"]) == ("cost", None, {"cost_miss": 3.0, "cost_alarm": 1.0})
    assert (rule["labels"]["n_normal"], rule["labels"]["n_anomalies"]) == (25, 25)


@pytest.mark.parametrize(
    "change",
    [
        put("threshold", "fpr", 0.1),
        put("threshold", "name", "conformal"),
        put("threshold", "name", "youden"),
        put("threshold", "parameters", "cost_miss", -1.0),
        put("threshold", "parameters", "cost_miss", "much"),
        put("threshold", "parameters", "beta", 1.0),
        put("threshold", "parameters", None),
        put("threshold", "labels", None),
        put("threshold", "labels", "n_normal", 0),
        put("threshold", "labels", "normal_flagged", 99),
        put("threshold", "labels", "anomalies_flagged", -1),
        lambda header, tensors: header["threshold"].pop("labels"),
    ],
)
def test_a_threshold_chosen_on_labels_that_does_not_fit_is_refused(chosen, change):
    forge(chosen, change)
    with refused(f"{NAME} does not hold a whole model"):
        load(chosen)


@pytest.fixture
def grouped(detector, path):
    """Model file with thresholds by group."""
    load(path).calibrate(mixed(100, seed=1), groups=["a", "b"] * 50).save(path)
    return path


def test_groups_that_fit_are_restored(grouped):
    forge(grouped, lambda header, tensors: None)
    assert sorted(load(grouped).group_thresholds_) == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        put("groups", None),
        put("groups", "names", ["a"]),
        put("groups", "names", ["a", "a"]),
        put("groups", "names", ["a", "b", "c"]),
        put("groups", "names", ["a", 5]),
        put("groups", "thresholds", {}),
        put("groups", "thresholds", None),
        put("groups", "thresholds", 5),
        put("groups", "thresholds", "a"),
        put("groups", "thresholds", [1.0]),
        put("groups", "column", None),
        put("groups", "thresholds", "a", math.nan),
        put("groups", "thresholds", "c", 1.0),
        lambda header, tensors: header.pop("groups"),
        lambda header, tensors: tensors.pop("calibration_groups"),
        replace("calibration_groups", np.zeros(99, np.int64)),
        replace("calibration_groups", np.zeros(100)),
        replace("calibration_groups", np.full(100, -2)),
        replace("calibration_groups", np.full(100, 2)),
        replace("calibration_groups", np.zeros(100, np.int64)),
    ],
)
def test_groups_that_do_not_fit_are_refused(grouped, change):
    forge(grouped, change)
    with refused(f"{NAME} does not hold a whole model"):
        load(grouped)


def test_messages_end_with_one_full_stop(path):
    forge(path, put("params", "likelihood", "elbow"))
    with pytest.raises(ModelFileError) as error:
        load(path)
    assert str(error.value).endswith("'student_t'.")


# Interrupted saves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_interrupted_save_leaves_the_old_file_whole(path, monkeypatch, error):
    before = path.read_bytes()

    def interrupted(arrays, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half of a")
        raise error

    monkeypatch.setattr(persistence, "save_file", interrupted)
    with pytest.raises(type(error)):
        VAEDetector(**TINY, random_state=1).fit(mixed()).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [NAME]


def test_an_interrupted_first_save_leaves_nothing(tmp_path, monkeypatch, detector):
    def interrupted(arrays, name, metadata):
        raise KeyboardInterrupt

    monkeypatch.setattr(persistence, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detector.save(tmp_path / NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_save_replaces_the_old_file(path):
    VAEDetector(**TINY, random_state=1).fit(mixed()).save(path)
    assert load(path).random_state == 1
    assert [file.name for file in path.parent.iterdir()] == [NAME]
