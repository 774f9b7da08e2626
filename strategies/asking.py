"""What a contributor is asked, and what its answer has to be (docs/messages.md, ``train``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from strategies import records
from strategies.contributions import Contribution, Start, Store
from strategies.errors import Refused
from strategies.exchange import reason_of
from strategies.fusion import Template


@dataclass(frozen=True)
class Asking:
    """How the contributors of a run are asked.

    Args:
        folder: where bodies go.
        statistic: of their data, which the rule needs beside bodies; empty for none.
        needed: metrics that have to be there, 1 or more: the rule needs them.
        by_reference: messages carry the base's number instead of arrays, and contributors leave
            their bodies in ``folder`` (`Store.offer`).
    """

    folder: Path
    statistic: str = ""
    needed: Sequence[str] = ()
    by_reference: bool = False

    def message(
        self,
        given: Message,
        start: Start,
        number: int,
        more: Mapping[str, str],
        arrays: ArrayRecord | None = None,
    ) -> Message:
        """Return a strategy's message with iteration and base in its config; arrays are shared.

        Args:
            given: the strategy's.
            start: what the contributor begins from.
            number: the iteration whose base that is.
            more: what else it is to be told.
            arrays: the base's, if it is another one than the strategy's.
        """
        config = records.config_of(given.content, records.CONFIG)
        config |= {"iteration": start.iteration, "base": start.base, **more}
        if self.statistic:
            config[records.STATISTIC] = self.statistic
        content = RecordDict()
        if self.by_reference:
            config[records.REFERENCE] = number
        else:
            content[records.ARRAYS] = arrays or given.content.array_records[records.ARRAYS]
        content[records.CONFIG] = ConfigRecord(config)
        return Message(content, given.metadata.dst_node_id, MessageType.TRAIN)

    def answer(
        self, name: str, reply: Message, start: Start, form: Template, store: Store
    ) -> Contribution:
        """Check a reply's form and keep its body; what does not fit is refused.

        Args:
            name: the contributor's.
            reply: its own.
            start: what it was asked with.
            form: the base's.
            store: of the iteration that takes it.
        """
        if reply.has_error():
            return Contribution(name, "refused", f"error reply: {reason_of(reply)}")
        try:
            records.check_size(reply.content)
            metrics = records.metrics_of(reply.content)
            stated = records.config_of(reply.content, records.CONTRIBUTION)
            expected = {"contributor": name, "iteration": start.iteration, "base": start.base}
            for key, value in expected.items():
                if stated.get(key) != value:
                    got = records.text_of(stated.get(key))
                    raise Refused(f"{key} is {got!r}, expected {value!r}")
            one = Contribution(
                name,
                metrics=metrics,
                facts=records.facts(stated),
                statistic=self.statistic,
                start=start,
            )
            if silent := [key for key in self.needed if not metrics.get(key, 0) >= 1]:
                raise Refused(f"it does not say its {silent[0]}, which the fusion rule needs")
            if self.by_reference:
                left = Store(self.folder, start.iteration)
                return store.take(one, form, left, str(stated.get(records.XXH3, "")))
            whole, body = records.body_of(reply.content, form, self.statistic)
            return store.put(one, body, whole)
        except Refused as reason:
            return Contribution(name, "refused", records.text_of(reason, 500))
