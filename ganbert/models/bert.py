"""BERT over intensity tokens: embeddings that a gradient can cross, NSP and MLM heads.

The network is Hugging Face's `BertForPreTraining`, untouched; this module only feeds it embeddings,
because token ids have no gradient and without one the adversarial terms would teach the generator
nothing (docs/decisions/0002-gradient-through-rounding.md).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining

from ganbert.config import DiscriminatorConfig
from ganbert.models.blocks import Checkpoint, call_directly
from ganbert.models.rounding import GRADIENTS
from ganbert.models.summary import SUMMARY_LENGTH
from ganbert.models.vocabulary import (
    CLS_ID,
    MASK_ID,
    MAX_INTENSITY_ID,
    NUM_IDS,
    PAD_ID,
    SEP_ID,
    VOCABULARY_SIZE,
)

# [CLS] 512 MRI [SEP] 512 PET [CLS]; paper, section 4.2.
SEQUENCE_LENGTH = 1 + SUMMARY_LENGTH + 1 + SUMMARY_LENGTH + 1
_FIRST_MRI = 1
_FIRST_PET = 1 + SUMMARY_LENGTH + 1
_INIT_STD = 0.02


class BertOutput(NamedTuple):
    """What the two heads of BERT say.

    Attributes
    ----------
    nsp_logits : Tensor (N, 2), float32; class 0 is a real PET, class 1 a generated one
    mlm_logits : Tensor (N, M, V), float32; at the M masked positions only, V ids
    """

    nsp_logits: Tensor
    mlm_logits: Tensor


def ordinal_table(num_rows: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Embedding rows whose similarity falls with the distance between their ids.

    Row i is a vector of cosines of i at wavelengths from 60 to 60,000 ids, so that neighbouring
    intensities look alike to BERT from the start and the slope between them means something.

    Returns
    -------
    Tensor (num_rows, width), float32, standard deviation 0.02 like BERT's own initialisation.

    Source: design decision, docs/decisions/0002-gradient-through-rounding.md.
    """
    exponents = torch.rand(width, generator=generator)
    wavelengths = 60.0 * 1000.0**exponents
    phases = 2 * math.pi * torch.rand(width, generator=generator)
    ids = torch.arange(num_rows, dtype=torch.float32)[:, None]
    return _INIT_STD * math.sqrt(2.0) * torch.cos(2 * math.pi * ids / wavelengths + phases)


def sample_masked_positions(
    num_rows: int, fraction_mri: float, fraction_pet: float, generator: torch.Generator
) -> Tensor:
    """Choose the masked positions of each sequence, the same number in each.

    Returns
    -------
    Tensor (N, M), int64, positions in the sequence: round(fraction * 512) of each modality.

    Source: Shin et al. 2020, section 4.2 (5 % of MRI, 25 % of PET). Every chosen token becomes
    [MASK]; BERT's habit of leaving a tenth and replacing a tenth is not in the paper.
    """
    device = generator.device
    positions = []
    for first, fraction in ((_FIRST_MRI, fraction_mri), (_FIRST_PET, fraction_pet)):
        order = torch.rand(num_rows, SUMMARY_LENGTH, generator=generator, device=device).argsort(1)
        positions.append(first + order[:, : round(fraction * SUMMARY_LENGTH)])
    return torch.cat(positions, dim=1)


class IntensityBert(nn.Module):
    """BERT that reads an MRI and a PET as two sentences of intensity tokens.

    With `sequence_multiple` the sequence is filled up with [PAD] that no token attends to, which
    changes the shapes inside and, without dropout, not the outputs.

    Forward
    -------
    mri_values, pet_values : Tensor (N, 512), float32, summarised normalised images
    masked_positions : Tensor (N, M), int64, positions in the sequence of 1027

    Outputs
    -------
    BertOutput

    Source: Shin et al. 2020, section 4.2.
    """

    token_type_ids: Tensor
    attention_mask: Tensor | None

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.gradient = GRADIENTS[config.gradient]
        self.checkpoint: Checkpoint = call_directly
        self.num_padding = -SEQUENCE_LENGTH % config.sequence_multiple
        length = SEQUENCE_LENGTH + self.num_padding
        self.bert = BertForPreTraining(
            BertConfig(
                vocab_size=VOCABULARY_SIZE,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.attention_dropout,
                max_position_embeddings=length,
                pad_token_id=PAD_ID,
                attn_implementation="sdpa",
            )
        )
        if config.embedding_init == "ordinal":
            with torch.no_grad():
                rows = ordinal_table(MAX_INTENSITY_ID + 1, config.hidden_size)
                self._table()[: MAX_INTENSITY_ID + 1] = rows
        segments = torch.zeros(1, length, dtype=torch.long)
        segments[:, _FIRST_PET:] = 1
        self.register_buffer("token_type_ids", segments, persistent=False)
        self.register_buffer("attention_mask", self._attention_mask(length), persistent=False)

    def _attention_mask(self, length: int) -> Tensor | None:
        # Any mask, even one that hides nothing, shuts out the fastest kernels of attention.
        if not self.num_padding:
            return None
        return (torch.arange(length) < SEQUENCE_LENGTH)[None, None, None]

    def _table(self) -> Tensor:
        weight: Tensor = self.bert.get_input_embeddings().weight
        return weight

    def embed(self, values: Tensor) -> Tensor:
        """Embed values (N, L) as (N, L, E); forward and backward are those of `GRADIENTS`."""
        return self.gradient(values, self._table())

    def _special(self, token: int, num_rows: int, count: int = 1) -> Tensor:
        return self._table()[token].expand(num_rows, count, -1)

    def _mask(self, embeddings: Tensor, masked_positions: Tensor) -> Tensor:
        num_rows, length, _ = embeddings.shape
        mask = torch.zeros(num_rows, length, dtype=torch.bool, device=embeddings.device)
        mask.scatter_(1, masked_positions, True)
        return torch.where(mask.unsqueeze(-1), self._table()[MASK_ID], embeddings)

    def forward(
        self, mri_values: Tensor, pet_values: Tensor, masked_positions: Tensor
    ) -> BertOutput:
        """Tell real from generated, and predict the masked values."""
        num_rows = len(mri_values)
        cls, sep = self._special(CLS_ID, num_rows), self._special(SEP_ID, num_rows)
        padding = self._special(PAD_ID, num_rows, self.num_padding)
        sentence = (cls, self.embed(mri_values), sep, self.embed(pet_values), cls, padding)
        embeddings = self._mask(torch.cat(sentence, dim=1), masked_positions)
        hidden = self._encode(embeddings)
        pooled = self.bert.bert.pooler(hidden)
        index = masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        # The vocabulary head only where its output is used: 154 of 1027 positions.
        # Without the rows that are no id: in the softmax they would change the loss.
        mlm_logits = self.bert.cls.predictions(hidden.gather(1, index))[..., :NUM_IDS]
        return BertOutput(self.bert.cls.seq_relationship(pooled).float(), mlm_logits.float())

    def _encode(self, embeddings: Tensor) -> Tensor:
        segments = self.token_type_ids.expand(len(embeddings), -1)
        hidden = self.bert.bert.embeddings(inputs_embeds=embeddings, token_type_ids=segments)
        mask = () if self.attention_mask is None else (self.attention_mask,)
        for layer in self.bert.bert.encoder.layer:
            hidden = _hidden(self.checkpoint(layer, hidden, *mask))
        return hidden


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
