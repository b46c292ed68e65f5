"""The peer of the project's step: the same job as one would first write it in plain PyTorch.

MONAI's UNet with the same channels on the MRI's grid, interpolated to the PET's, and Hugging Face's
BertForPreTraining with logits at all positions, real and generated one after the other, Adam, no
checkpointing. Needs of this project only what the job itself is (tokens, losses' weights), and no
DeepSpeed.
"""

from collections.abc import Callable, Sequence

import torch
from stopwatch import Stopwatch
from torch import Tensor, nn
from torch.nn import functional

from ganbert.config import NUM_FRAMES, DiscriminatorConfig, Grid

Step = Callable[[Stopwatch], None]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def monai_unet(channels: Sequence[int]) -> nn.Module:
    """MONAI's UNet from one MRI to the frames of a PET."""
    from monai.networks.nets import UNet

    strides = (2,) * (len(channels) - 1)
    network: nn.Module = UNet(3, 1, NUM_FRAMES, channels, strides=strides, num_res_units=2)
    return network


def random_images(
    mri_grid: Grid, pet_grid: Grid, micro_batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """MRI and PET of a micro-batch, in the paper's intensity regime, on the device."""
    mri = torch.randn(micro_batch, 1, *mri_grid.shape, device=device)
    return mri, 9 * torch.rand(micro_batch, NUM_FRAMES, *pet_grid.shape, device=device)


class PlainBert(nn.Module):
    """Hugging Face's BERT over both images, as one would write it first."""

    def __init__(self, config: DiscriminatorConfig, attention_dropout: float) -> None:
        super().__init__()
        from transformers import BertConfig, BertForPreTraining

        self.bert = BertForPreTraining(
            BertConfig(
                vocab_size=10_112,
                max_position_embeddings=1027,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
                attention_probs_dropout_prob=attention_dropout,
            )
        )

    def forward(self, mri: Tensor, pet: Tensor, pet_real: Tensor, is_real: int) -> Tensor:
        """Weighted NSP and MLM loss."""
        from ganbert.models.rounding import straight_through
        from ganbert.models.summary import summarise_mri, summarise_pet
        from ganbert.models.vocabulary import CLS_ID, MASK_ID, SEP_ID, values_to_ids

        num, device = len(mri), mri.device
        rows = self.bert.get_input_embeddings().weight
        images = (summarise_mri(mri), summarise_pet(pet), summarise_pet(pet_real))
        mri_rows, pet_rows = (straight_through(values, rows) for values in images[:2])
        cls, sep = (rows[token].expand(num, 1, -1) for token in (CLS_ID, SEP_ID))
        embeddings = torch.cat((cls, mri_rows, sep, pet_rows, cls), dim=1)
        ids = torch.zeros(num, 1027, dtype=torch.int64, device=device)
        ids[:, 1:513], ids[:, 514:1026] = values_to_ids(images[0]), values_to_ids(images[2])
        share = torch.zeros(1027, device=device)
        share[1:513], share[514:1026] = 0.05, 0.25
        masked = torch.rand(num, 1027, device=device) < share
        output = self.bert(
            inputs_embeds=torch.where(masked.unsqueeze(-1), rows[MASK_ID], embeddings)
        )
        truth = torch.full((num,), 0 if is_real else 1, device=device)
        nsp = functional.cross_entropy(output.seq_relationship_logits, truth)
        labels = ids.masked_fill(~masked, -100)
        mlm = functional.cross_entropy(output.prediction_logits.transpose(1, 2), labels)
        return 20 * nsp + mlm


def build_plain(
    mri_grid: Grid,
    pet_grid: Grid,
    *,
    channels: Sequence[int],
    bert: DiscriminatorConfig,
    attention_dropout: float = 0.1,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
    micro_batch: int = 1,
    precision: str = "fp32",
) -> Step:
    """Build the job's step.

    Parameters
    ----------
    precision : "fp32", or the type of autocast: "fp16" (with a gradient scaler), "bf16"
    """
    generator = monai_unet(channels).to(device)
    adversary = PlainBert(bert, attention_dropout).to(device)
    optimisers = [torch.optim.Adam(net.parameters(), lr=1e-4) for net in (generator, adversary)]
    scalers = [torch.amp.GradScaler(device.type, enabled=precision == "fp16") for _ in optimisers]
    mri, pet_real = random_images(mri_grid, pet_grid, micro_batch, device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def learn(clock: Stopwatch, which: int, network: str) -> None:
        scalers[which].step(optimisers[which])
        scalers[which].update()
        clock.mark(f"{network} optimiser")

    def step(clock: Stopwatch) -> None:
        with autocast():
            grown = functional.interpolate(generator(mri), pet_grid.shape, mode="trilinear")
        pet_fake = functional.tanhshrink(grown.float())
        clock.mark("generator forward")
        optimisers[1].zero_grad()
        for pet, is_real in ((pet_real, 1), (pet_fake.detach(), 0)):
            with autocast():
                loss = adversary(mri, pet, pet_real, is_real) / 2
            clock.mark("discriminator forward")
            scalers[1].scale(loss).backward()
            clock.mark("discriminator backward")
        learn(clock, 1, "discriminator")
        optimisers[0].zero_grad()
        pet_fake.register_hook(lambda _: clock.mark("judgement backward"))
        with autocast():
            loss = adversary(mri, pet_fake, pet_real, 1)
        loss = loss + 20 * functional.l1_loss(pet_fake, pet_real)
        clock.mark("judgement forward")
        scalers[0].scale(loss).backward()
        clock.mark("generator backward")
        learn(clock, 0, "generator")

    return step
