"""configs/quickstart.yaml written by hand: the same scenes, sizes and batches, in plain torch with Lightning's Trainer.

    python -m benchmarks.peers.bare_lightning FOLDER WITNESS

The scenes come from VELM's drawing code, whose only large imports are NumPy and PIL; everything else is written as
without VELM. Trains until `benchmarks.witness.FirstStep` stops it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.witness import FirstStep
from velm.data.synthetic.shapes import Shapes

DIM, EMBED, EPOCHS, BATCH = 128, 256, 12, 32
PAD, BOS, EOS, UNKNOWN = range(4)


class Scenes(Dataset):
    """Drawn scenes, each with one random description, and the vocabulary of all descriptions."""

    def __init__(self) -> None:
        self.records = Shapes().split("train")
        counts: Counter[str] = Counter()
        for place in range(len(self.records)):
            for text in self.records.text_only(place).texts:
                counts.update(re.findall(r"\w+", text.lower()))
        self.ids = {word: number + 4 for number, (word, _) in enumerate(counts.most_common())}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: int) -> tuple[Tensor, list[int]]:
        record = self.records[place]
        text = record.texts[int(torch.randint(len(record.texts), ()))]
        words = [self.ids.get(word, UNKNOWN) for word in re.findall(r"\w+", text.lower())]
        return torch.from_numpy(record.image).permute(2, 0, 1), [BOS, *words, EOS]


def collate(samples: list[tuple[Tensor, list[int]]]) -> tuple[Tensor, Tensor]:
    """uint8 (B, 3, 64, 64) and int64 (B, T), padded with 0."""
    images, sentences = zip(*samples, strict=True)
    return torch.stack(images), nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sentences], batch_first=True)


class Block(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(channels // 8, channels), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        return self.shortcut(F.avg_pool2d(active, 2)) + self.conv2(F.relu(self.norm2(self.conv1(active))))


class Model(nn.Module):
    """A small CNN, a GRU and a Transformer decoder of two layers over the CNN's grid."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.stages = nn.Sequential(stem, Block(32, 64), Block(64, DIM), nn.GroupNorm(8, DIM), nn.ReLU())
        self.words = nn.Embedding(vocabulary, DIM, padding_idx=PAD)
        self.gru = nn.GRU(DIM, DIM, batch_first=True)
        self.image_projection = nn.Linear(DIM, EMBED, bias=False)
        self.text_projection = nn.Linear(DIM, EMBED, bias=False)
        self.inputs = nn.Embedding(vocabulary, DIM, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(128, DIM))
        self.memory_norm = nn.LayerNorm(DIM)
        layer = nn.TransformerDecoderLayer(
            DIM, 4, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(DIM))
        self.output = nn.Linear(DIM, vocabulary)
        self.output.weight = self.inputs.weight
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The contrastive and the captioning loss."""
        grid = self.stages(images / 127.5 - 1).flatten(2)
        lengths = (tokens != PAD).sum(dim=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.words(tokens), lengths, batch_first=True, enforce_sorted=False)
        image_embeds = F.normalize(self.image_projection(grid.amax(2)), dim=1)
        sentences = F.normalize(self.text_projection(self.gru(packed)[1][-1]), dim=1)
        logits = self.log_scale.exp() * image_embeds @ sentences.T
        places = torch.arange(len(logits), device=logits.device)
        contrastive = (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        hidden = self.inputs(inputs) + self.positions[: inputs.shape[1]]
        causal = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        memory = self.memory_norm(grid.transpose(1, 2))
        written = self.output(self.decoder(hidden, memory, tgt_mask=causal, tgt_is_causal=True))
        return contrastive, F.cross_entropy(written.flatten(0, 1), labels.flatten(), ignore_index=PAD)


class Task(lightning.LightningModule):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.model = Model(vocabulary)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        contrastive, captioning = self.model(*batch)
        loss = contrastive + 2 * captioning
        values = {"train/loss": loss, "train/contrastive": contrastive, "train/captioning": captioning}
        self.log_dict(values, prog_bar=True)
        return loss

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        decayed = [each for each in self.parameters() if each.dim() >= 2]
        plain = [each for each in self.parameters() if each.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=total, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder: str, witness: str) -> None:
    lightning.seed_everything(0)
    scenes = Scenes()
    loader = DataLoader(scenes, batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        limit_val_batches=0,
        default_root_dir=folder,
        logger=[CSVLogger(folder), TensorBoardLogger(Path(folder).parent, name=Path(folder).name, version="")],
        callbacks=[LearningRateMonitor("step"), ModelCheckpoint(folder, filename="last"), FirstStep(witness)],
    )
    trainer.fit(Task(len(scenes.ids) + 4), loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
