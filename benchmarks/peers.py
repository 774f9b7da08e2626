"""Flower's own FedAvg, as a peer: whole rounds only."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg


class WholeRounds(FedAvg):
    """FedAvg that stops where a contributor fails.

    Flower logs a failure and goes on with the rest, and a round in which all fail is quick.
    """

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Average what all of them sent."""
        listed = list(replies)
        failed = [reply.error.reason for reply in listed if reply.has_error()]
        if failed or len(listed) < self.min_available_nodes:
            raise RuntimeError(f"{len(listed)} replies, of which failed: {failed}")
        return super().aggregate_train(server_round, listed)
