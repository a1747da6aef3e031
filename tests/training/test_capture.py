"""Streams that keep their identity, and the captured step against the plain one."""

from dataclasses import replace

import pytest
import torch

from lib import randomness
from lib.training import recipes
from lib.training.capture import WARM_UP, Captured, Streams
from lib.training.training import Training

CPU = torch.device("cpu")


def test_streams_draw_what_the_named_generators_draw_and_keep_their_identity():
    streams, objects = Streams(7, CPU), set()
    for step in (0, 1, 5):
        streams.begin(step)
        for purpose in ("attack", "clean"):
            drawn = torch.rand(3, generator=streams(purpose))
            assert torch.equal(drawn, torch.rand(3, generator=randomness.generator(7, "train", step, purpose)))
            objects.add(id(streams(purpose)))
    assert len(objects) == 2


def test_a_stream_first_asked_for_later_starts_at_its_own_step():
    streams = Streams(7, CPU)
    streams.begin(3)
    expected = torch.rand(2, generator=randomness.generator(7, "train", 3, "noise"))
    assert torch.equal(torch.rand(2, generator=streams("noise")), expected)


def test_on_a_cpu_every_call_runs_the_body():
    runs = []
    captured = Captured(lambda: runs.append(1) or {"n": torch.tensor(float(len(runs)))}, Streams(0, CPU))
    assert [captured("key")["n"].item() for _ in range(WARM_UP + 3)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.gpu
@pytest.mark.parametrize("name, close", [
    ("rdi_smallcnn-digits-main-quick", 1e-4), ("rdi_resnet38-digits-max_average-quick", 1e-4),  # in fp32
    ("cheap_resnet38-cifar10-float_slim-laptop", 0.02), ("rdi_resnet38-cifar10-max_average-laptop", 0.02),
    ("rdi_mobilenet_v2-cifar10-main-laptop", 0.02), ("resnet20-cifar10-pni-laptop", 0.02)])  # passes in bf16
def test_captured_steps_lose_what_eager_steps_lose(name, close, tmp_path):
    """The same losses over five replays, dropout, attack, noise and batch norm included, with a rate that changes; as
    close as two eager runs are, which atomic sums on a busy device drive apart through the signs of gradients."""
    torch.backends.cudnn.allow_tf32 = False
    recipe = replace(recipes.find(name), dataset="digits")

    def losses(able: bool) -> list[float]:
        training, seen = Training(recipe, tmp_path, torch.device("cuda")), []
        training.step = round(recipe.epsilon_warmup * training.total)  # past the rise of epsilon: a constant threat
        training.captured.able = able
        for _ in range(WARM_UP + 5):
            training.advance()
            seen.append(training.unread[-1][1]["loss"].item() if training.unread else None)
        assert (training.captured.graph is not None) == able
        return seen

    captured, eager, again = losses(True), losses(False), losses(False)
    apart = max(abs(a - b) / abs(a) for a, b in zip(eager, again, strict=True))
    assert captured == pytest.approx(eager, rel=max(close, 3 * apart))


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_goes_on_eagerly_and_says_so_once():
    runs, streams = [], Streams(0, torch.device("cuda"))

    def body():
        drawn = torch.rand((), generator=streams("noise"), device="cuda")
        runs.append(torch.ones(1, device="cuda").sum().item())  # waits for the device: not allowed in a capture
        return {"n": drawn}

    captured = Captured(body, streams)
    with pytest.warns(UserWarning, match="could not be captured") as caught:
        for step in range(WARM_UP + 4):
            streams.begin(step)
            expected = torch.rand((), generator=randomness.generator(0, "train", step, "noise", device="cuda"),
                                  device="cuda")
            assert captured("key")["n"].item() == expected.item()
    assert len(caught) == 1 and len(runs) >= WARM_UP + 4
