import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from scripts.memory.fakes import RememberingFakeMode

CALLS = {
    "product": lambda x, y: x @ y.t(),
    "of two types": lambda x, y: x.half() + y,
    "by a whole number": lambda x, y: torch.pow(x, 2),
    "by a broken one": lambda x, y: torch.pow(x.int(), 2.0),
    "whole by whole": lambda x, y: torch.pow(x.int(), 2),
    "view": lambda x, y: x.t()[1:, ::2],
    "views": lambda x, y: torch.stack(y.unbind(0)[:2]),
    "in place": lambda x, y: x.add_(y),
    "parts": lambda x, y: torch.cat(x.split(2), 1),
    "norm": lambda x, y: torch.native_layer_norm(x, [6], None, None, 1e-5)[1],
    "type": lambda x, y: x.to(torch.float64),
    "contiguous": lambda x, y: y.t().contiguous(),
    "all at once": lambda x, y: torch._foreach_mul([x, y], [y, x])[1],
    "nothing returned": lambda x, y: (torch._foreach_add_([x, y], 1.0), x)[1],
    "of other units": lambda x, y: x[1:].view(torch.int16),
    "where it is told": lambda x, y: x[1:].as_strided((2, 2), (1, 2), 3),
    "made": lambda x, y: torch.empty_like(x.t()),
}


def geometry(tensor):
    size = tensor.untyped_storage().nbytes()
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device, size


def inputs():
    return torch.empty(4, 6), torch.empty(8, 6)[::2]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_remembered_has_the_geometry_that_pytorch_gives_it(name):
    with FakeTensorMode():
        expected = geometry(CALLS[name](*inputs()))
    with RememberingFakeMode() as mode:
        first = geometry(CALLS[name](*inputs()))
        known = len(mode.known)
        again = geometry(CALLS[name](*inputs()))
    assert first == again == expected
    assert len(mode.known) == known >= 1


def test_a_remembered_view_lies_in_its_own_argument_and_a_result_in_place_is_the_argument():
    with RememberingFakeMode():
        for _ in range(3):
            x, y = inputs()
            assert x.t().untyped_storage()._cdata == x.untyped_storage()._cdata
            assert y.t().untyped_storage()._cdata == y.untyped_storage()._cdata
            assert (x + 1).untyped_storage()._cdata != x.untyped_storage()._cdata
            assert x.mul_(y) is x


def test_a_remembered_view_of_another_place_lies_there():
    with RememberingFakeMode() as mode:
        rows = torch.empty(4, 6)
        offsets = [row.view(2, 3)[1].storage_offset() for row in rows]
        known = len(mode.known)
        later = [row.view(2, 3)[1].storage_offset() for row in torch.empty(4, 6)]
        told = [row.as_strided((2,), (1,), 5).storage_offset() for row in rows]
    assert offsets == later == [3, 9, 15, 21]
    assert told == [5] * 4
    assert len(mode.known) == known + 4


def test_what_is_remembered_is_not_worked_out_again(monkeypatch):
    worked_out = []
    dispatch = FakeTensorMode.dispatch
    monkeypatch.setattr(FakeTensorMode, "dispatch", lambda *args: worked_out.append(args[1]) or dispatch(*args))
    with RememberingFakeMode():
        for times in range(1, 4):
            x, y = inputs()
            worked_out.clear()
            _ = torch.relu(x @ y.t())
            assert (torch.ops.aten.mm.default in worked_out) == (times == 1)


def test_operators_on_values_and_new_sizes_are_left_to_pytorch():
    with RememberingFakeMode() as mode:
        for _ in range(2):
            with pytest.raises(DataDependentOutputException):
                inputs()[0].sum().item()
            assert torch.tensor(3.0).item() == 3.0
            storage = torch.empty(16)
            assert storage.resize_(4).shape == (4,)
            assert storage.t_().shape == (4,)
        assert torch.ops.aten.resize_.default not in {key[0] for key, known in mode.known.items() if known}
