"""The training loop: its schedule, which weights it keeps, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moekd.config import Training
from moekd.errors import OutputError, SettingsError
from moekd.tokens import Tokens
from moekd.training import Task, fit, forget_checkpoints, learning_rate_factor, make_optimizer

#: 24 rows of 12 tokens, 6 a batch: 4 steps an epoch.
ROWS, LENGTH, STEPS = 24, 12, 4


def settings(**changes) -> Training:
    return Training(**{"epochs": 3, "learning_rate": 1e-2, "token_budget": 6 * LENGTH} | changes)


def task(*, measure=None, loss=None, rows: int = ROWS) -> Task:
    """Random tokens; the label is the parity of the second one."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 300, (rows, LENGTH))
    labels = torch.from_numpy(ids[:, 1] % 2)

    def cross_entropy(logits: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels[torch.from_numpy(batch)])

    return Task("toy", Tokens.of(ids), lambda epoch: np.arange(rows), loss or cross_entropy, measure)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(one, other) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ---------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("progress", "schedule", "expected"),
    [
        (0.05, "linear", 0.5),  # half of the warm-up
        (0.05, "one-cycle", 0.5),
        (0.1, "linear", 1.0),
        (0.1, "one-cycle", 1.0),
        (0.325, "linear", 0.75),  # a quarter of the rest
        (0.325, "one-cycle", 0.853553),  # (1 + cos(pi / 4)) / 2
        (0.55, "linear", 0.5),
        (0.55, "one-cycle", 0.5),
        (1.0, "linear", 0.0),
        (1.0, "one-cycle", 0.0),
    ],
)
def test_schedule_by_hand(progress, schedule, expected):
    assert learning_rate_factor(progress, warmup=0.1, schedule=schedule) == pytest.approx(expected, abs=1e-6)


def test_schedule_without_warm_up():
    assert learning_rate_factor(0.0, warmup=0.0, schedule="linear") == 1.0


def test_the_learning_rate_of_each_step(make_model, tmp_path):
    """4 steps x 3 epochs, a quarter of them warm-up: progress n/12, the first step counted as half a step."""
    rates = []
    real = torch.optim.AdamW.step

    def step(self, *args):
        rates.append({group["lr"] for group in self.param_groups})
        return real(self, *args)

    with mock.patch.object(torch.optim.AdamW, "step", step):
        fit(make_model(), task(), settings(warmup=0.25, learning_rate=0.9), pad_id=1, seed=0, folder=tmp_path)
    expected = [0.15, 0.3, 0.6, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [max(rate) for rate in rates] == pytest.approx(expected)
    assert all(len(rate) == 1 for rate in rates)


# --------------------------------------------------------------------------------------------- optimiser


def test_every_parameter_is_trained(make_model, tmp_path):
    """The references leave biases and norms out (methods.md 1.10 d): here they have a group and they move."""
    model = make_model()
    decayed, plain = make_optimizer(model, settings(weight_decay=0.3)).param_groups
    groups = {id(p): group["weight_decay"] for group in (decayed, plain) for p in group["params"]}
    assert groups.keys() == {id(parameter) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        no_decay = name.endswith("bias") or "LayerNorm" in name
        assert groups[id(parameter)] == (0.0 if no_decay else 0.3), name
    before = weights_of(model)
    fit(model, task(), settings(weight_decay=0.0), pad_id=1, seed=0, folder=tmp_path)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == set()


# ------------------------------------------------------------------------------------- which weights stay


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ((3.0, 2.0, 1.0), 0),
        ((1.0, 3.0, 2.0), 1),
        ((1.0, 2.0, 2.0), 1),  # a tie keeps the earlier
        (None, 2),  # nothing to judge by: the last
    ],
)
def test_best_epoch_is_kept(make_model, tmp_path, figures, best):
    seen = []

    def measure(model) -> float:
        assert not model.training
        seen.append(weights_of(model))
        return figures[len(seen) - 1]

    model = make_model()
    history = fit(model, task(measure=figures and measure), settings(bf16=False), pad_id=1, seed=0, folder=tmp_path)
    assert history.best_epoch == best
    assert history.measures == list(figures or ())
    assert not model.training
    if figures:
        assert_equal_weights(model.state_dict(), seen[best])
    else:
        undisturbed = make_model()
        fit(undisturbed, task(measure=lambda model: 0.0), settings(epochs=1), pad_id=1, seed=0, folder=tmp_path / "1")
        assert not torch.equal(undisturbed.classifier.dense.weight, model.classifier.dense.weight)


def test_history_counts_real_tokens_and_means_over_rows(make_model, tmp_path):
    """A constant loss of 2 has the mean 2 although the last batch is smaller; padding is not counted."""

    def two(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return logits.sum() * 0 + 2

    history = fit(make_model(), task(loss=two, rows=20), settings(), pad_id=1, seed=0, folder=tmp_path)
    assert history.losses == [2.0, 2.0, 2.0]
    assert history.tokens == 3 * 20 * LENGTH
    assert history.seconds > 0


def test_forget_checkpoints_leaves_nothing(make_model, tmp_path):
    fit(make_model(), task(), settings(checkpoint_seconds=1e-9), pad_id=1, seed=0, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "best.safetensors"}
    forget_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []
    forget_checkpoints(tmp_path)  # also where there is none


# ------------------------------------------------------------------------------------------------ errors


def test_a_loss_that_is_not_finite_names_the_setting(make_model, tmp_path):
    def diverged(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return logits.sum() * float("nan")

    with pytest.raises(SettingsError, match=r"toy: the loss became nan; lower its learning_rate, .* 0\.01"):
        fit(make_model(), task(loss=diverged), settings(), pad_id=1, seed=0, folder=tmp_path)


@pytest.mark.parametrize("name", ["best.safetensors.tmp", "checkpoint.new"])
def test_weights_that_cannot_be_written(make_model, tmp_path, name):
    """safetensors reports what the disk refuses by an error of its own."""
    seconds = 1e-9 if name == "checkpoint.new" else 60.0
    refusing = mock.patch("safetensors.torch.save_file", side_effect=refuse)
    with refusing, pytest.raises(OutputError, match=rf"cannot write .*{name.split('.')[0]}.*No space left"):
        fit(make_model(), task(), settings(checkpoint_seconds=seconds), pad_id=1, seed=0, folder=tmp_path)


def refuse(tensors, path) -> None:
    """Let the library itself fail, where a folder is missing, and say what a full disk would."""
    from safetensors import SafetensorError

    try:
        save_file(tensors, Path(path).parent / "missing" / "file")
    except SafetensorError as error:
        raise SafetensorError(str(error).replace("No such file or directory", "No space left on device")) from error


def test_a_folder_that_cannot_be_made(make_model, tmp_path, monkeypatch):
    def mkdir(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutputError, match="no permission to write there"):
        fit(make_model(), task(), settings(), pad_id=1, seed=0, folder=tmp_path / "new")


# ------------------------------------------------------------------------------------------------- kills


def test_killed_and_continued(tmp_path):
    """SIGKILL anywhere, also inside a checkpoint: continued runs end as the undisturbed one, bit for bit."""
    program = "import sys, test_training; test_training.compare(sys.argv[1])"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == 2 * len(KILLS)
    assert [outcome for outcome in outcomes if outcome["differs"]] == []
    assert max(outcome["steps_of_last_run"] for outcome in outcomes) < 3 * STEPS  # continued, not begun again


#: Where to kill, attempt by attempt: at the n-th call of the loss or the measure, or before the n-th renaming of a file
#: or folder. A checkpoint after each step renames three files, the last checkpoint away, and itself into its place.
KILLS = (
    [("loss", 1), ("loss", 6)],  # before the first checkpoint; in the middle of the second epoch
    [("model.safetensors.tmp", 2), ("optimizer.safetensors.tmp", 2), ("state.json.tmp", 2)],
    [("checkpoint", 2), ("checkpoint.new", 2)],  # the latter leaves checkpoint.old alone
    [("measure", 2), ("best.safetensors.tmp", 1), ("loss", 4)],  # an epoch is trained, its weights not yet kept
)


def compare(folder: str) -> None:
    """Run by a process of its own, which imports everything once, never trains and so can fork clean children."""
    import torch._dynamo  # optimisers import it when they are made
    import transformers.models.roberta.modeling_roberta  # noqa: F401

    outcomes = []
    for dropout in (0.0, 0.3):
        root = Path(folder) / str(dropout)
        assert in_a_child(lambda root=root, dropout=dropout: train(root / "undisturbed", dropout)) == 0
        wanted = result(root / "undisturbed")
        for number, kills in enumerate(KILLS):
            place = root / str(number)
            for what, count in kills:
                ended = in_a_child(lambda p=place, d=dropout, w=what, c=count: train(p, d, kill=(w, c)))
                assert ended == -signal.SIGKILL, (what, count, ended)
            assert in_a_child(lambda p=place, d=dropout: train(p, d)) == 0
            history, weights, steps = result(place)
            same = history == wanted[0] and all(torch.equal(weights[n], wanted[1][n]) for n in wanted[1])
            outcomes.append({"dropout": dropout, "kills": kills, "differs": not same, "steps_of_last_run": steps})
    sys.stdout.write(json.dumps(outcomes) + "\n")


def in_a_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its exit code, or the negative number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder: Path, dropout: float, kill: tuple[str, int] | None = None) -> None:
    """Train in `folder`, with a checkpoint after each step, and write what came of it."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=20,
        )
    )
    calls: Counter[str] = Counter()

    def called(what: str) -> None:
        calls[what] += 1
        if kill == (what, calls[what]):
            os.kill(os.getpid(), signal.SIGKILL)

    rename = Path.replace

    def replace(self, target):
        called(self.name)
        return rename(self, target)

    plain = task()

    def loss(logits, rows):
        called("loss")
        return plain.loss(logits, rows)

    def measure(model) -> float:
        called("measure")
        return float(model.classifier.out_proj.weight.detach().sum())

    Path.replace = replace
    history = fit(
        model,
        task(loss=loss, measure=measure),
        settings(dropout=dropout, checkpoint_seconds=1e-9),
        pad_id=1,
        seed=7,
        folder=folder,
    )
    save_file(model.state_dict(), folder / "final.safetensors")
    (folder / "history.json").write_text(json.dumps(asdict(history) | {"steps": calls["loss"]}))


def result(folder: Path) -> tuple[dict, dict[str, torch.Tensor], int]:
    """History without seconds, final weights, and the steps that the last process made."""
    history = json.loads((folder / "history.json").read_text())
    assert history.pop("seconds") > 0
    steps = history.pop("steps")
    return history, load_file(folder / "final.safetensors"), steps
