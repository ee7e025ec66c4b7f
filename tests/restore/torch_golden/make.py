"""Writes the golden files beside it: state dicts, inputs and outputs of PyTorch. Needs torch and safetensors.

    python tests/restore/torch_golden/make.py

No test needs torch: they read what this leaves, which PyTorch 2.13.0 and safetensors 0.8 wrote.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def noise(*shape: int) -> torch.Tensor:
    """Random numbers."""
    return torch.randn(*shape)


def kinds() -> tuple[nn.ModuleDict, dict[str, tuple[torch.Tensor, ...]]]:
    """One layer of each kind, and what each is called with."""
    layers = {
        "linear": (nn.Linear(5, 5), noise(3, 5)),
        "plain": (nn.Linear(4, 6, bias=False), noise(3, 4)),
        "conv1d": (nn.Conv1d(3, 4, 3), noise(2, 3, 9)),
        "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=2, groups=2), noise(2, 4, 9, 8)),
        "square": (nn.Conv2d(3, 3, 3, bias=False), noise(2, 3, 6, 6)),
        "conv3d": (nn.Conv3d(2, 3, (2, 3, 2)), noise(1, 2, 5, 6, 5)),
        "depthwise1d": (nn.Conv1d(3, 6, 3, groups=3), noise(2, 3, 8)),
        "depthwise2d": (nn.Conv2d(3, 6, 3, groups=3), noise(2, 3, 7, 7)),
        "up1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), noise(2, 3, 5)),
        "up2d": (nn.ConvTranspose2d(3, 4, (3, 2), stride=2), noise(2, 3, 5, 4)),
        "up3d": (nn.ConvTranspose3d(2, 3, 2), noise(1, 2, 3, 4, 3)),
        "batch_norm": (nn.BatchNorm2d(4), noise(2, 4, 3, 3)),
        "layer_norm": (nn.LayerNorm(6), noise(3, 6)),
        "group_norm": (nn.GroupNorm(2, 6), noise(2, 6, 4, 4)),
        "rms_norm": (nn.RMSNorm(6, eps=1e-6), noise(3, 6)),
        "embedding": (nn.Embedding(7, 4), torch.randint(0, 7, (3, 5))),
        "lstm": (nn.LSTM(3, 4, batch_first=True), noise(2, 6, 3)),
        "deep_lstm": (nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True), noise(2, 6, 3)),
        "gru": (nn.GRU(3, 4, batch_first=True), noise(2, 6, 3)),
        "both_gru": (nn.GRU(3, 4, batch_first=True, bidirectional=True), noise(2, 6, 3)),
        "rnn": (nn.RNN(3, 4, batch_first=True), noise(2, 6, 3)),
        "attention": (nn.MultiheadAttention(8, 2, batch_first=True), noise(2, 5, 8)),
    }
    modules = nn.ModuleDict({name: layer for name, (layer, _) in layers.items()})
    inputs = {name: (given,) for name, (_, given) in layers.items()}
    modules["cross"] = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    inputs["cross"] = (noise(2, 5, 8), noise(2, 7, 6), noise(2, 7, 4))
    return modules, inputs


def randomise(module: nn.Module) -> None:
    """Every parameter and statistic other than any initial value."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(noise(*value.shape) * 0.5 + (1.5 if "var" in name else 0.1))
            value.abs_() if "running_var" in name else None
    module.eval()


def call(name: str, module: nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The output of a layer; of an attention and a recurrent layer, the sequence."""
    if "attention" in name or name == "cross":
        given = given if len(given) == 3 else given * 3
    out = module(*given)
    return out[0] if isinstance(out, tuple) else out


class Block(nn.Module):
    """A basic block, named as torchvision's."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            convolution = nn.Conv2d(before, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width]."""
        kept = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + kept)


class ResNet18(nn.Module):
    """ResNet-18, a sixteenth as wide, named as torchvision's."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = width
        for stage in range(4):
            wide = width * 2**stage
            blocks = [Block(before, wide, 1 if stage == 0 else 2), Block(wide, wide, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            before = wide
        self.fc = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] to [batch, 10]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def named(**children: nn.Module) -> nn.Module:
    """A module with these children."""
    made = nn.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


class Bert(nn.Module):
    """A BERT of two small layers, named as Hugging Face's."""

    def __init__(self, width: int = 16, heads: int = 2, vocabulary: int = 40, length: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.bert = nn.Module()
        self.bert.embeddings = named(
            word_embeddings=nn.Embedding(vocabulary, width),
            position_embeddings=nn.Embedding(length, width),
            token_type_embeddings=nn.Embedding(2, width),
            LayerNorm=nn.LayerNorm(width, eps=1e-12),
        )
        self.bert.encoder = named(layer=nn.ModuleList(self.block(width) for _ in range(2)))
        self.bert.pooler = named(dense=nn.Linear(width, width))

    @staticmethod
    def block(width: int) -> nn.Module:
        """One layer of the encoder."""
        own = named(**{name: nn.Linear(width, width) for name in ("query", "key", "value")})
        out = named(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))
        return named(
            attention=named(self=own, output=out),
            intermediate=named(dense=nn.Linear(width, 2 * width)),
            output=named(dense=nn.Linear(2 * width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12)),
        )

    def forward(self, words: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """[batch, length] twice to [batch, width]."""
        e = self.bert.embeddings
        x = e.word_embeddings(words) + e.position_embeddings.weight[: words.shape[1]]
        x = e.LayerNorm(x + e.token_type_embeddings(types))
        for block in self.bert.encoder.layer:
            own, out = block.attention.self, block.attention.output
            heads = [
                getattr(own, name)(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            ]
            mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            x = out.LayerNorm(out.dense(mixed) + x)
            wide = nn.functional.gelu(block.intermediate.dense(x))
            x = block.output.LayerNorm(block.output.dense(wide) + x)
        return torch.tanh(self.bert.pooler.dense(x[:, 0]))


def odd() -> None:
    """Dtypes, views, shared storages, an empty tensor; and a checkpoint with an optimizer's state."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    odd = {
        "half.weight": base[:2, :2].half(),
        "brain.weight": (base / 3).bfloat16(),
        "double.weight": base.double(),
        "eight.weight": base[:1].to(torch.float8_e4m3fn),
        "long": torch.tensor([1, -2]),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "turned.weight": base.T,
        "part.weight": base[1:3, 2:5],
        "tied.weight": base,
        "again.weight": base,
    }
    torch.save(odd, HERE / "odd.pt")
    np.savez(HERE / "odd.npz", **{k: v.double().numpy() for k, v in odd.items()})
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(noise(4, 3)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.5}
    torch.save(whole, HERE / "checkpoint.pt")
    torch.save(model, HERE / "whole_model.pt")
    torch.save(model.state_dict(), HERE / "before_1_6.pth", _use_new_zipfile_serialization=False)


def main() -> None:
    """Writes all of them."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    modules, inputs = kinds()
    randomise(modules)
    arrays = {}
    for name, given in inputs.items():
        arrays |= {f"{name}.in{k}": value.numpy() for k, value in enumerate(given)}
        arrays[f"{name}.out"] = call(name, modules[name], given).numpy()
    torch.save(modules.state_dict(), HERE / "kinds.pt")
    np.savez_compressed(HERE / "kinds.npz", **arrays)
    net, image = ResNet18(), noise(2, 3, 48, 48)
    randomise(net)
    torch.save(net.state_dict(), HERE / "resnet18.pth")
    save_file(net.state_dict(), HERE / "resnet18.safetensors")
    np.savez_compressed(HERE / "resnet18.npz", image=image.numpy(), out=net(image).numpy())
    bert, words, types = Bert(), torch.randint(0, 40, (3, 9)), torch.randint(0, 2, (3, 9))
    randomise(bert)
    state = bert.state_dict()
    halves = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    weight_map = {}
    for k, half in enumerate(halves, 1):
        file = f"bert-{k:05}-of-00002.safetensors"
        save_file(half, HERE / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (HERE / "bert.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    np.savez_compressed(
        HERE / "bert.npz", words=words.numpy(), types=types.numpy(), out=bert(words, types).numpy()
    )
    torch.set_grad_enabled(True)
    odd()


if __name__ == "__main__":
    main()
