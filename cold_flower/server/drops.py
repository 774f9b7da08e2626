"""What lies in a run's drop box, as contributions of the iteration that is being made."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from cold_flower.config import Config
from cold_flower.errors import ColdFlowerError, ConfigError, ModelError
from cold_flower.repository.bases import Repository
from cold_flower.repository.dropbox import Dropbox, Stated, folder_of
from cold_flower.repository.journal import run_id
from cold_flower.server.finetuned import Finetuned, examine
from cold_flower.server.strategy import needed
from strategies import records
from strategies.contributions import FROM, Contribution, Start, Store
from strategies.errors import Refused
from strategies.fusion import Template
from strategies.participants import Drops

DROPBOX = "dropbox"  # as a value of `FROM`
LOOK = 1.0  # seconds between two looks into the box


def check(config: Config) -> None:
    """Check the keys about a drop box.

    Raises:
        ConfigError: a folder that is not there, or is another run's.
    """
    if not config.dropbox:
        return
    if not Path(config.dropbox).is_dir():
        raise ConfigError(f"dropbox = {config.dropbox}: there is no such folder; make it first")
    Dropbox(Path(config.dropbox)).check(run_id(Path(config.run_dir)) if config.resume else "")


class FromDropbox(Drops):
    """Takes models out of a drop box, each once.

    Args:
        config: the run's.
        run_dir: its directory.
        others: returns the names of the contributors that are asked.
        left: who left the run for good.
        say: called with a line for each model that is refused.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        others: Callable[[], Collection[str]],
        left: Collection[str],
        say: Callable[[str], object],
    ) -> None:
        self.box = Dropbox(folder_of(config, run_dir))
        if config.dropbox:
            self.box.claim(run_id(run_dir))
        self._config, self._repository = config, Repository(run_dir)
        self._others, self._left, self._say = others, left, say
        self._looked = -LOOK
        self._told: set[str] = set()
        for name in self.waiting:
            self.box.whole(name)  # from now on it is seen whether it changes

    @property
    def there(self) -> bool:
        """Return whether there is a drop box."""
        return self.box.folder.is_dir()

    @property
    def waiting(self) -> Collection[str]:
        """Return the names of models that wait."""
        return self.box.waiting()[0]

    def names(self, iteration: int) -> Collection[str]:
        """Return whose models were taken for an iteration."""
        return [name for name in self.box.taken(iteration) if name not in self._left]

    def next(
        self, iteration: int, here: Mapping[str, Contribution], form: Template, store: Store
    ) -> Contribution | None:
        """Take the next model out of the box; what cannot be fused is put aside, and said."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return None
        taken = self.box.taken(iteration)  # some before a crash, and not in the store yet
        waiting, others = self.box.waiting()
        for name in others:
            self._tell(f"drop box: {name} is no folder with a contributor's name: left where it is")
        for name in dict.fromkeys((*taken, *waiting)):
            if name in here:  # a second one of this name waits for the next iteration
                continue
            if name not in taken and not self.box.whole(name):
                continue
            try:
                folder = taken.get(name) or self.box.take(name, iteration)
            except OSError as error:
                self._tell(f"drop box: {name} cannot be moved, so it is not taken: {error}")
                continue
            if one := self._read(name, folder, iteration, form, store):
                return one
        self._looked = now
        return None

    def refuse(self, name: str, iteration: int, reason: str) -> None:
        """Put aside what was taken for an iteration, such as what screening refused."""
        if folder := self.box.taken(iteration).get(name):
            self.box.refuse(folder, name, reason)

    def _tell(self, line: str) -> None:
        """Say a line, once."""
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _read(
        self, name: str, folder: Path, iteration: int, form: Template, store: Store
    ) -> Contribution | None:
        """Put a model into the store, or aside."""
        try:
            if name in self._left:
                raise Refused("it left this run for good")
            if name in self._others():
                raise Refused("a contributor of this run has that name")
            stated = Stated.read(folder)
            lacking(self._config, stated)
            model = examine(
                str(folder),
                self._repository,
                self._config.staleness,
                name=name,
                stated=stated.base,
            )
            return _put(name, model, stated, iteration, form, self._repository, store)
        except (ColdFlowerError, Refused) as error:
            aside = self.box.refuse(folder, name, str(error))
            self._say(f"drop box: {name} refused: {error} (put aside: {aside})")
            return None


def _put(
    name: str,
    model: Finetuned,
    stated: Stated,
    iteration: int,
    form: Template,
    repository: Repository,
    store: Store,
) -> Contribution:
    facts = {FROM: DROPBOX, "recognised": model.recognised, "licence": model.licence}
    one = Contribution(
        name,
        metrics={records.EXAMPLES: float(stated.examples)} if stated.examples else {},
        facts={key: records.text_of(value, 200) for key, value in facts.items() if value},
        start=Start(iteration, model.base),
    )
    return store.put(one, model.items(repository.body(model.iteration)), form)


def lacking(config: Config, stated: Stated) -> None:
    """Check that a folder can have what the rule needs.

    Raises:
        ModelError: a statistic of data, which no folder holds; or what its owner does not say.
    """
    statistic, metrics = needed(config)
    if statistic:
        raise ModelError(
            f"the fusion rule {config.fusion.rule} needs a statistic ({statistic}) of the data "
            "beside a model: a drop box has none"
        )
    wanted: Sequence[str] = (records.EXAMPLES,) if config.fusion.strategy else metrics
    given = {records.EXAMPLES: stated.examples}
    if silent := [key for key in wanted if not given.get(key)]:
        way_out = "--examples says it" if silent[0] in given else "a drop box cannot have it"
        raise ModelError(f"the fusion needs {silent[0]} of each contribution: {way_out}")
