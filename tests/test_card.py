"""The model file and its card: written together, refused apart."""

import json

import pytest
import torch

from scripts.networks.card import NOMINAL, card_path, load_model, read_card, save_model
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import TemporalHead, make_head
from scripts.networks.weights import load_into, read_state

CARD = {**NOMINAL, "encoder_name": "test_vit", "image_size": 32, "hidden_size": 8, "classes": ["a", "b"]}


def parts(
    seed: int = 0, hidden_size: int = 8, num_classes: int = 2, layers: int = 1
) -> tuple[FrameEncoder, TemporalHead]:
    encoder = FrameEncoder("test_vit", layers=layers)
    load_into(encoder, f"random:{seed}", "models")
    return encoder, make_head("gru", encoder.num_features, num_classes, hidden_size=hidden_size)


@pytest.fixture
def saved(tmp_path):
    """models/model.pt of a head that was trained, its card, and the network that was saved."""
    encoder, trained = parts()
    trained.fit_scale(torch.ones(64), torch.full((64,), 2.0))
    torch.save(trained.state_dict(), tmp_path / "best.pt")
    path = save_model(tmp_path / "models" / "model.pt", encoder, parts()[1], tmp_path / "best.pt", CARD)
    return path, SequenceClassifier(encoder, trained)


def test_saved_model_loads_to_the_same_logits_with_its_statistics(saved):
    path, network = saved
    loaded = SequenceClassifier(*parts(seed=9))
    load_model(loaded, path)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    image = torch.rand(1, 3, 3, 32, 32)
    with torch.inference_mode():
        wanted = network.eval()(image)
        torch.testing.assert_close(loaded.eval()(image), wanted, rtol=0, atol=0)


def test_model_file_is_a_pure_state_dict_with_its_card_beside_it_and_nothing_else(saved):
    path, network = saved
    assert read_state(path).keys() == network.state_dict().keys()
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.pt"]
    assert read_card(path) == CARD | {"temperature": 1.0}


def test_saving_again_replaces_model_and_card_and_says_what_was_there(saved, tmp_path, caplog):
    path, _ = saved
    head = parts()[1]
    torch.save(head.state_dict(), tmp_path / "next.pt")
    with caplog.at_level("INFO", "angiography"):
        save_model(path, parts(seed=3)[0], parts()[1], tmp_path / "next.pt", {**CARD, "classes": ["c", "d"]})
    assert caplog.messages[0] == f"model: {path} replaces a model of multiclass: a, b"
    assert read_card(path)["classes"] == ["c", "d"]
    torch.testing.assert_close(read_state(path)["head.project.weight"], head.project.weight.data, rtol=0, atol=0)


def test_card_of_a_fresh_bundle_is_nominal_and_a_copy(tmp_path):
    card = read_card(tmp_path / "model.pt")
    assert card == NOMINAL
    card["image_size"] = 7
    assert NOMINAL["image_size"] != 7


def test_model_without_its_card_is_refused_with_the_way_out(saved):
    path, _ = saved
    card_path(path).unlink()
    with pytest.raises(ValueError, match=r"model\.pt: card is absent, needs model\.json beside it.*train\.yaml"):
        read_card(path)


@pytest.mark.parametrize("name", ["pooling", "layers", "pixel_mean", "pixel_std"])
def test_card_that_does_not_say_how_frames_become_features_is_refused(saved, name):
    path, _ = saved
    card_path(path).write_text(json.dumps({k: v for k, v in CARD.items() if k != name}))
    with pytest.raises(ValueError, match=rf"model\.json: content is without {name}, needs all of"):
        read_card(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"not json"])
def test_card_that_is_no_json_is_refused_by_name(saved, content):
    path, _ = saved
    card_path(path).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.json: content is not JSON"):
        read_card(path)


def test_card_that_lacks_fields_is_refused_with_each_of_them(saved):
    path, _ = saved
    card_path(path).write_text(json.dumps({k: v for k, v in CARD.items() if k not in ("classes", "use_times")}))
    with pytest.raises(ValueError, match=r"model\.json: content is without classes, use_times"):
        read_card(path)


def test_card_that_is_no_object_is_refused_by_name(saved):
    path, _ = saved
    card_path(path).write_text("[]")
    with pytest.raises(ValueError, match=r"model\.json: content is"):
        read_card(path)


def test_loading_an_absent_model_names_the_workflow_that_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_path is .*model\.pt.*train\.yaml"):
        load_model(SequenceClassifier(*parts()), tmp_path / "model.pt")


@pytest.mark.parametrize("other", [{"hidden_size": 16}, {"num_classes": 3}, {"layers": 2}])
def test_model_of_another_architecture_is_refused_and_the_network_stays_as_it_was(saved, other):
    path, _ = saved
    network = SequenceClassifier(*parts(seed=9, **other))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"architecture.*: \d+ tensors differ, first head\.") as error:
        load_model(network, path)
    assert "Leave encoder_name, layers, head_name, hidden_size and classes as the card has them" in str(error.value)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_damaged_model_file_is_refused_by_name(saved):
    path, network = saved
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.pt: content is"):
        load_model(network, path)
