"""Text-to-text models as classifiers (PAPER, App. D): a class is the words of its label.

A class's score is the log-likelihood of its label's tokens, the end of text included. It is a
sum over the tokens, not a mean, under the softmax over the whole vocabulary, as in the rank
classification of T0 (Sanh et al. 2022). The loss is the negative score of the true class.

The encoder reads the task's texts as the suite makes them, without a prompt before them. T5's
own prompts can be had by a template in the suite, such as
``text = ["mnli hypothesis: {hypothesis} premise: {premise}"]``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import SequenceClassifierOutput

from cold_flower.data.task import Task
from cold_flower.errors import ConfigError, TaskError
from cold_flower.models.base import Base

IGNORED = -100  # fills up targets; cross_entropy and T5's shift to the right leave it out


def label_tokens(tokenizer: Any, labels: Sequence[str]) -> list[list[int]]:
    """Return each class's tokens, with the end of text."""
    end = tokenizer.eos_token_id
    return [[*tokenizer(name, add_special_tokens=False)["input_ids"], end] for name in labels]


def check(base: Base, task: Task, labels: Sequence[str]) -> None:
    """Check that a text-to-text model can tell a task's classes apart by their words.

    Any other model passes.

    Raises:
        TaskError: regression, classes without words, or two that have the same tokens.
    """
    if not base.text_to_text:
        return
    if task.kind == "regression":
        raise TaskError(
            f"{task.where}: kind is regression, but base-model {base.name!r} is text to text, "
            "which scores classes by their label words. Leave the task out of tasks, or take an "
            "encoder as base-model."
        )
    if not task.labels and all(name.lstrip("-").isdigit() for name in labels):
        raise TaskError(
            f"{task.where}: no label words, the classes are called {', '.join(labels)}; base-model "
            f"{base.name!r} is text to text and scores each class by its words. Give them in the "
            'suite, in the order of the numbers: labels = ["...", "..."].'
        )
    name_of: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(labels, label_tokens(base.tokenizer, labels), strict=True):
        other = name_of.setdefault(tuple(tokens), name)
        if other != name:
            raise TaskError(
                f"{task.where}: the labels {other!r} and {name!r} are the same tokens to the "
                f"tokenizer of {base.name!r} ({tokens}): give other words in the suite's labels."
            )


def check_statistic(base: Base, kind: str) -> None:
    """Check that a statistic of the data can be computed with a model.

    Raises:
        ConfigError: grams of text to text; the decoder reads other tokens than the data's.
    """
    if base.text_to_text and kind.startswith("gram"):
        raise ConfigError(
            f"base-model {base.name!r} is text to text, for which there are no grams: take another "
            "fusion rule than regmean"
        )


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-likelihood of each row's targets, float32 [batch].

    Args:
        logits: [batch, tokens, vocabulary], of any precision.
        targets: [batch, tokens]; those that are IGNORED do not count.
    """
    losses = cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(1)


class TextToText(nn.Module):
    """A T5 called like a sequence-classification model. All of it is the body.

    Args:
        model: a T5ForConditionalGeneration.
        words: the tokens of each class (`label_tokens`).
    """

    words: Tensor
    base_model_prefix = "base_model"  # the attribute that holds the body, as in the library

    def __init__(self, model: Any, words: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.base_model = model
        self._lengths = [len(tokens) for tokens in words]  # on the CPU: no need to ask a GPU
        rows = [torch.tensor(tokens) for tokens in words]
        padded = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        self.register_buffer("words", padded, persistent=False)  # [classes, longest]

    @property
    def config(self) -> Any:
        """Return the T5's configuration."""
        return self.base_model.config

    @property
    def device(self) -> torch.device:
        """Return where the model lies."""
        return self.words.device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return the loss of the true classes; without labels, the score of every class.

        Args:
            input_ids: [batch, tokens]
            attention_mask: [batch, tokens]
            labels: class indices [batch]
        """
        encoded = self._encode(input_ids, attention_mask)
        head = self.base_model.lm_head
        if labels is not None:
            targets = self.words[labels]
            logits = head(self._decode(encoded, attention_mask, targets))
            return SequenceClassifierOutput(loss=-log_likelihood(logits, targets).mean())
        scores = []
        for row, length in zip(self.words, self._lengths, strict=True):  # a class at a time
            targets = row[:length].expand(len(encoded), length)
            logits = head(self._decode(encoded, attention_mask, targets))
            scores.append(log_likelihood(logits, targets))
        return SequenceClassifierOutput(logits=torch.stack(scores, dim=1))  # [batch, classes]

    def states(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return what the LM head reads of the true labels' tokens: [batch, longest, hidden]."""
        encoded = self._encode(input_ids, attention_mask)
        return self._decode(encoded, attention_mask, self.words[labels])

    def untie_head(self) -> Any:
        """Freeze all but the LM head, and give it a weight of its own; return the head."""
        self.requires_grad_(False)
        head = self.base_model.lm_head
        head.weight = nn.Parameter(head.weight.detach().clone())
        return head

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoded: Tensor = self.base_model.encoder(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return encoded

    def _decode(self, encoded: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        # The decoder is causal: padding behind the targets does not reach them.
        decoded: Tensor = self.base_model.decoder(
            input_ids=self.base_model._shift_right(targets),
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        if self.config.scale_decoder_outputs:  # T5 1.0, whose head shares the embedding
            decoded = decoded * self.base_model.model_dim**-0.5
        return decoded
