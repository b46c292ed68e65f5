"""BERT over intensity tokens: the sequence, the mask, exact embeddings, ordinal rows."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ganbert.config import DiscriminatorConfig
from ganbert.losses import mlm
from ganbert.models.bert import (
    SEQUENCE_LENGTH,
    BertOutput,
    IntensityBert,
    ordinal_table,
    sample_masked_positions,
)
from ganbert.models.vocabulary import (
    CLS_ID,
    MASK_ID,
    MAX_INTENSITY_ID,
    NUM_IDS,
    PAD_ID,
    SEP_ID,
    values_to_ids,
)

# Positions in [CLS] 512 MRI [SEP] 512 PET [CLS].
MRI = range(1, 513)
PET = range(514, 1026)


def tiny_config(**settings: object) -> DiscriminatorConfig:
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32,
             "dropout": 0.0}  # fmt: skip
    return DiscriminatorConfig.model_validate(small | settings)


@pytest.fixture(scope="module")
def bert() -> IntensityBert:
    torch.manual_seed(0)
    return IntensityBert(tiny_config(num_layers=2)).eval()


@pytest.fixture
def values() -> tuple[Tensor, Tensor]:
    return 3 * torch.rand(2, 512), 3 * torch.rand(2, 512)


def sample(num_rows: int, seed: int = 0) -> Tensor:
    return sample_masked_positions(num_rows, 0.05, 0.25, torch.Generator().manual_seed(seed))


@given(st.integers(min_value=0, max_value=2**31))
@settings(max_examples=10, deadline=None)
def test_masks_26_of_mri_and_128_of_pet(seed: int) -> None:
    for row in sample(3, seed).tolist():
        assert len(row) == len(set(row)) == 154
        assert sum(position in MRI for position in row) == 26  # round(0.05 * 512)
        assert sum(position in PET for position in row) == 128  # 0.25 * 512


def test_masks_differ_between_rows_and_follow_from_the_seed() -> None:
    assert not torch.equal(*sample(2).split(1))
    assert torch.equal(sample(2, seed=5), sample(2, seed=5))
    assert not torch.equal(sample(2, seed=5), sample(2, seed=6))


def test_every_token_gets_its_turn() -> None:
    assert set(sample(500).flatten().tolist()) == {*MRI, *PET}


def sequence_of(bert: IntensityBert, mri: Tensor, pet: Tensor, masked: Tensor) -> Tensor:
    """Embeddings (N, L, E) that BERT's own embedding layer is given."""
    seen: list[Tensor] = []
    layer = bert.bert.bert.embeddings
    handle = layer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        bert(mri, pet, masked)
    finally:
        handle.remove()
    return seen[0]


def test_sequence_is_cls_mri_sep_pet_cls(
    bert: IntensityBert, values: tuple[Tensor, Tensor]
) -> None:
    mri, pet = values
    masked = torch.tensor([[3, 600], [5, 700]])
    table = bert.bert.get_input_embeddings().weight
    special = [torch.full((2, 1), token) for token in (CLS_ID, SEP_ID, CLS_ID)]
    ids = torch.cat(
        (special[0], values_to_ids(mri), special[1], values_to_ids(pet), special[2]), dim=1
    ).scatter(1, masked, MASK_ID)
    assert ids.shape == (2, SEQUENCE_LENGTH) == (2, 1027)
    assert torch.equal(sequence_of(bert, mri, pet, masked), table[ids])


def test_mri_and_sep_are_sentence_0_and_pet_is_sentence_1(bert: IntensityBert) -> None:
    assert bert.token_type_ids.tolist() == [[0] * 514 + [1] * 513]


def test_shapes_and_precision(bert: IntensityBert, values: tuple[Tensor, Tensor]) -> None:
    output = bert(*values, sample(2))
    assert output.nsp_logits.shape == (2, 2)
    assert output.mlm_logits.shape == (2, 154, NUM_IDS)
    assert output.nsp_logits.dtype == output.mlm_logits.dtype == torch.float32


def test_bfloat16_weights_give_float32_logits(values: tuple[Tensor, Tensor]) -> None:
    bert = IntensityBert(tiny_config()).bfloat16()
    pet = values[1].requires_grad_()
    output = bert(values[0], pet, sample(2))
    assert output.nsp_logits.dtype == output.mlm_logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(output.nsp_logits[:, 0].sum(), pet)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def equal(one: BertOutput, other: BertOutput) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def changed_at(values: Tensor, position: int) -> Tensor:
    changed = values.clone()
    changed[:, position] += 4.0
    return changed


@pytest.mark.parametrize("position", [1, 100, 512, 514, 700, 1025])
def test_masked_value_is_invisible_and_a_bare_one_is_not(
    bert: IntensityBert, values: tuple[Tensor, Tensor], position: int
) -> None:
    mri, pet = values
    in_mri = position in MRI
    offset = position - (MRI.start if in_mri else PET.start)
    changed = (changed_at(mri, offset), pet) if in_mri else (mri, changed_at(pet, offset))
    hidden = torch.tensor([[position, 50, 800]]).expand(2, -1)
    bare = torch.tensor([[51, 50, 800]]).expand(2, -1)
    with torch.no_grad():
        assert equal(bert(mri, pet, hidden), bert(*changed, hidden))
        before, after = bert(mri, pet, bare), bert(*changed, bare)
    assert (before.nsp_logits != after.nsp_logits).any()
    assert (before.mlm_logits != after.mlm_logits).any()


def test_position_of_a_token_matters(bert: IntensityBert, values: tuple[Tensor, Tensor]) -> None:
    mri, pet = values
    with torch.no_grad():
        assert not torch.equal(
            bert(mri, pet, sample(2)).nsp_logits, bert(mri, pet.flip(1), sample(2)).nsp_logits
        )


def test_mlm_logits_stand_in_the_order_of_the_positions(
    bert: IntensityBert, values: tuple[Tensor, Tensor]
) -> None:
    masked = sample(2)
    with torch.no_grad():
        forward, backward = bert(*values, masked), bert(*values, masked.flip(1))
    torch.testing.assert_close(forward.mlm_logits, backward.mlm_logits.flip(1))


def test_rows_that_are_no_id_have_no_part_in_the_loss(values: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = IntensityBert(tiny_config()).eval()
    labels = torch.randint(NUM_IDS, (2, 154))
    losses = []
    for extra in (0.0, 100.0):
        network._table().data[NUM_IDS:] = extra
        network.bert.cls.predictions.bias.data[NUM_IDS:] = extra
        losses.append(mlm(network(*values, sample(2)).mlm_logits, labels))
    assert torch.equal(*losses)
    losses[1].backward()
    assert not network._table().grad[NUM_IDS:].any()


def test_embeddings_are_the_rows_exactly() -> None:
    values = torch.tensor([[0.0, 0.0014, -0.499, -0.5, -0.501, 9.9996, 10.0, 10.001, 123.4567]])
    for gradient in ("none", "straight_through", "chord"):
        bert = IntensityBert(tiny_config(gradient=gradient))
        table = bert.bert.get_input_embeddings().weight
        for requires_grad in (False, True):
            embedded = bert.embed(values.clone().requires_grad_(requires_grad))
            assert torch.equal(embedded, table[values_to_ids(values)])


def test_output_layer_shares_the_embedding_table(bert: IntensityBert) -> None:
    assert bert.bert.cls.predictions.decoder.weight is bert.bert.get_input_embeddings().weight


def similarity(table: Tensor, distance: int) -> float:
    pairs = table[: len(table) - distance], table[distance:]
    return torch.nn.functional.cosine_similarity(*pairs).mean().item()


def test_ordinal_rows_are_less_alike_the_further_apart() -> None:
    table = ordinal_table(MAX_INTENSITY_ID + 1, 64, torch.Generator().manual_seed(0))
    by_distance = [similarity(table, distance) for distance in (1, 10, 100, 1000, 5000)]
    assert by_distance == sorted(by_distance, reverse=True)
    assert by_distance[0] > 0.99
    assert by_distance[-1] < 0.6


def test_ordinal_rows_have_the_size_of_berts_own() -> None:
    table = ordinal_table(MAX_INTENSITY_ID + 1, 64, torch.Generator().manual_seed(0))
    assert table.shape == (MAX_INTENSITY_ID + 1, 64)
    assert table.std().item() == pytest.approx(0.02, rel=0.1)
    assert len(table.unique(dim=0)) == len(table)


def test_embedding_init_is_an_option() -> None:
    def neighbours(init: str) -> float:
        table = IntensityBert(tiny_config(embedding_init=init)).bert.get_input_embeddings().weight
        return similarity(table[: MAX_INTENSITY_ID + 1].detach(), 1)

    assert neighbours("ordinal") > 0.95
    assert abs(neighbours("normal")) < 0.05


@pytest.fixture
def learner() -> IntensityBert:
    return IntensityBert(tiny_config(num_layers=2, dropout=0.1)).train()


@pytest.mark.parametrize("multiple", [1, 64])
def test_checkpointing_changes_nothing_but_memory(
    multiple: int, values: tuple[Tensor, Tensor]
) -> None:
    config = tiny_config(num_layers=2, dropout=0.1, sequence_multiple=multiple)
    learner, masked, calls = IntensityBert(config).train(), sample(2), []

    def counted(function: torch.nn.Module, *arguments: Tensor) -> Tensor:
        calls.append(function)
        return checkpoint(function, *arguments, use_reentrant=False)

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)  # the same dropout both times
        learner.zero_grad()
        output = learner(*values, masked)
        (output.nsp_logits[:, 0].sum() + output.mlm_logits.square().mean()).backward()
        return [p.grad.clone() for p in learner.parameters() if p.grad is not None]

    plain = gradients()
    learner.checkpoint = counted
    checkpointed = gradients()
    assert len(calls) == 2
    assert len(plain) == len(checkpointed) > 0
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)


def test_every_parameter_that_is_used_learns(
    learner: IntensityBert, values: tuple[Tensor, Tensor]
) -> None:
    output = learner(*values, sample(2))
    (output.nsp_logits[:, 0].sum() + output.mlm_logits.square().mean()).backward()
    without = [name for name, p in learner.named_parameters() if p.grad is None]
    assert not without


POSITIONS = "bert.bert.embeddings.position_embeddings.weight"


def padded_twin(bert: IntensityBert, multiple: int, **settings: object) -> IntensityBert:
    """The same weights behind a padded sequence; its further positions hold noise."""
    twin = IntensityBert(tiny_config(sequence_multiple=multiple, **settings))
    state = dict(bert.state_dict())
    further = 10 * torch.randn_like(twin.state_dict()[POSITIONS][SEQUENCE_LENGTH:])
    state[POSITIONS] = torch.cat((state[POSITIONS], further))
    twin.load_state_dict(state)
    return twin.train(bert.training)


@pytest.mark.parametrize(("multiple", "length"), [(1, 1027), (8, 1032), (64, 1088), (79, 1027)])
def test_sequence_is_padded_to_a_multiple(
    multiple: int, length: int, values: tuple[Tensor, Tensor]
) -> None:
    bert = IntensityBert(tiny_config(sequence_multiple=multiple))
    masked = sample(2)
    embedded = sequence_of(bert, *values, masked)
    assert embedded.shape == (2, length, 32)
    padding = bert.bert.get_input_embeddings().weight[PAD_ID].expand(2, length - 1027, -1)
    assert torch.equal(embedded[:, SEQUENCE_LENGTH:], padding)
    assert bert.state_dict()[POSITIONS].shape == (length, 32)


@pytest.mark.parametrize("multiple", [8, 64])
def test_padding_changes_no_output_and_no_gradient(
    values: tuple[Tensor, Tensor], multiple: int
) -> None:
    bert = IntensityBert(tiny_config(num_layers=2)).eval()
    # A [PAD] row that is not small: it must be hidden.
    bert.bert.get_input_embeddings().weight.data[PAD_ID] = torch.randn(32)
    masked = sample(2)
    results = []
    for network in (bert, padded_twin(bert, multiple, num_layers=2)):
        pet = values[1].clone().requires_grad_()
        output = network(values[0], pet, masked)
        (pull,) = torch.autograd.grad(output.nsp_logits[:, 0].sum(), pet, retain_graph=True)
        (rows,) = torch.autograd.grad(
            output.mlm_logits.square().mean(), network.get_parameter(POSITIONS)
        )
        results.append((*output, pull, rows))
    (*plain, rows), (*padded, padded_rows) = results
    assert plain[2].any()
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded_rows[:SEQUENCE_LENGTH], rows, rtol=1e-5, atol=1e-5)
    assert not padded_rows[SEQUENCE_LENGTH:].any()


@pytest.mark.parametrize(("multiple", "hidden"), [(1, None), (79, None), (64, 61)])
def test_attention_has_a_mask_only_where_there_is_padding(
    multiple: int,
    hidden: int | None,
    values: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor | None] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        seen.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    IntensityBert(tiny_config(sequence_multiple=multiple))(*values, sample(2))
    assert [mask if mask is None else int((~mask).sum()) for mask in seen] == [hidden]
