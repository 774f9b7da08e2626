"""``python -m tests.acceptance sites``: three real sites, and everything that goes wrong.

SuperLink and SuperNodes with directories, keys and ports of their own, TLS, real datasets under
column names of the sites' own, MiniLM (or the demo's, `sites-small`); nginx in front where there is one (NGINX names it).
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.federation import Federation, Place, block, free_port, wait_for
from tests.real_sites import DATA, LIMITS, RECIPE, real, settle


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


class Show:
    """The show: each method one thing that must hold."""

    def __init__(self, folder: Path, small: bool = False) -> None:
        self.small = small
        self.model = "demo" if small else str(real() / "models" / "minilm")
        self.federation = Federation(folder / "sites")
        self.results: dict[str, bool] = {}

    def hold(self, what: str, holds: bool, figure: str = "") -> None:
        """Note whether something holds."""
        self.results[what] = bool(holds)
        say(f"{'holds' if holds else 'FAILS'}: {what}{': ' if figure else ''}{figure}")

    def recipe(self, iterations: int, minimum: int) -> str:
        """Return the experiment."""
        return RECIPE.format(model=self.model, iterations=iterations, minimum=minimum)

    def finish(self, run: "subprocess.Popen[str]", seconds: float = 900) -> tuple[int, str]:
        """Wait for a deploy to end; return exit code and output."""
        try:
            out, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)
            out, _ = run.communicate(timeout=60)
            out += "\n(timed out)"
        return run.returncode, out

    def database(self) -> str:
        """Say how large the SuperLink's database is."""
        home = self.federation.coordinator.folder
        sizes = {p.name: round(p.stat().st_size / 1e6, 1) for p in home.glob("state.db*")}
        return f"{sizes} MB"

    # What must hold, in order.

    def refused(self) -> None:
        """Unregistered node, wrong CA, expired certificate."""
        federation = self.federation
        stranger = federation.site("stranger", register=False)
        process = stranger.start("supernode")
        process.wait(60)
        last = [line for line in stranger.log("supernode").splitlines() if line.strip()]
        self.hold("an unregistered node is refused", process.returncode != 0, last[-1][:300])
        other = Place(federation.folder / "other", DIR=federation.folder / "other")
        other.run("ca", DIR=other.folder)
        place = federation.sites["clinic-a"]
        right = (place.folder / "ca.crt").read_bytes()
        (place.folder / "ca.crt").write_bytes((other.folder / "ca.crt").read_bytes())
        said = self._rejected(place, "wrong-ca")
        self.hold("a wrong CA is refused, and said", "wrong ca.crt" in said, said)
        (place.folder / "ca.crt").write_bytes(right)
        expired = Federation(federation.folder / "expired")
        try:
            expired.coordinator.run("ca")
            expired.coordinator.run("certificate", DAYS="-1")
            expired.coordinator.run("connection")
            expired.start_superlink()
            site = expired.site("late", register=False)
            said = self._rejected(site, "expired")
            self.hold("an expired certificate is refused, and said", "it has expired" in said, said)
        finally:
            expired.close()

    def _rejected(self, place: Place, name: str) -> str:
        process = place.start("supernode")
        time.sleep(15)
        ended = process.poll()
        log = place.log("supernode")
        tail = [line.strip() for line in log.splitlines() if line.strip()][-2:]
        say(
            f"  {name}: flower-supernode {'runs on' if ended is None else f'exits {ended}'}: {tail}"
        )
        self.hold(f"{name}: the SuperNode does not get in", "Successfully" not in log)
        if ended is None:
            place.kill("supernode", signal.SIGTERM)
        return place.run("site-check", check=False).strip().splitlines()[-1]

    def nginx(self) -> int:
        """Start nginx with the page's file; return its port, or the SuperLink's."""
        federation = self.federation
        binary = os.environ.get("NGINX") or shutil.which("nginx")
        if not binary:
            say("nginx is not here: the sites reach the SuperLink directly")
            return federation.port
        home = federation.coordinator.folder
        port = free_port()
        made = (
            block("file: nginx.conf").replace("PUBLIC_PORT", str(port)).replace("DIR/", f"{home}/")
        )
        made = made.replace("HOST", "localhost").replace(
            "127.0.0.1:PORT", f"127.0.0.1:{federation.port}"
        )
        made = made.replace(
            "http {",
            "http {\n"
            + "".join(
                f"    {kind}_temp_path {home}/nginx-{kind};\n"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            + f"    access_log {home}/access.log;\n",
            1,
        )
        (home / "nginx.conf").write_text(made)
        options = f"daemon off; pid {home}/nginx.pid; user root;" if os.getuid() == 0 else ""
        with (home / "nginx.log").open("wb") as log:
            federation.coordinator.processes["nginx"] = subprocess.Popen(
                [binary, "-e", f"{home}/error.log", "-c", f"{home}/nginx.conf", "-g", options],
                env=federation.coordinator.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        time.sleep(2)
        codes = {}
        for path in (
            "/v1/control/list-runs",
            "/v1/runtime/get-nodes",
            "/health",
            "/v1/fleet/pull-messages",
        ):
            asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--cacert",
                     f"{home}/ca.crt", "-X", "POST", f"https://localhost:{port}{path}"]  # fmt: skip
            codes[path] = subprocess.run(asked, capture_output=True, text=True).stdout
        others = {code for path, code in codes.items() if "/fleet/" not in path}
        fleet = codes["/v1/fleet/pull-messages"]
        good = others == {"403"} and fleet not in ("403", "000")
        self.hold("nginx exposes the fleet routes alone", good, str(codes))
        return port

    def plain(self) -> None:
        """Two iterations, undisturbed."""
        before = time.monotonic()
        run = self.federation.deploy(self.recipe(2, 3), "plain")
        code, out = self.finish(run)
        say("\n" + out)
        rows = self.federation.rows("plain", "contributions.jsonl")
        good = code == 0 and [r["verdict"] for r in rows] == ["accepted"] * 6
        took = time.monotonic() - before
        self.hold(
            f"3 sites, 2 iterations, {Path(self.model).name}",
            good,
            f"{took:.0f} s in all; {self.steps('plain')}",
        )
        for name, site in self.federation.sites.items():
            log = site.folder / "own" / name / "sent.jsonl"
            sent = (
                [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            )
            bodies = [r for r in sent if r["kind"] == "train"]
            there = {r["sha256"] for r in rows if r["contributor"] == name}
            same = {r["sha256"] for r in bodies} == there
            sizes = [r["bytes"] for r in bodies]
            if name in DATA:
                self.hold(
                    f"{name}: one model each iteration, as its log says",
                    same and len(sizes) == 2,
                    f"{sizes} bytes",
                )
        listed = subprocess.run(
            ["flwr", "ls", "partners", "--format", "json"],
            env=self.federation.coordinator.env, capture_output=True, text=True,
        )  # fmt: skip
        try:
            say(f"flwr ls: {json.loads(listed.stdout)['runs'][0].get('network-traffic')}")
        except (ValueError, LookupError):
            say(listed.stdout[-500:] + listed.stderr[-500:])
        say(f"database after the run: {self.database()}")

    def steps(self, run: str) -> str:
        """Return seconds of each iteration's finetuning, from the events."""
        events = self.federation.rows(run, "progress.jsonl")
        begun = {e["iteration"]: e["time"] for e in events if "asking" in e["line"]}
        done = {e["published"]: e["time"] for e in events if "published" in e}
        return ", ".join(
            f"iteration {i}: {done[i] - t:.0f} s" for i, t in begun.items() if i in done
        )

    def simulated(self) -> None:
        """Do the same work as a simulation, to compare the time."""
        home = self.federation.coordinator.folder
        lines = []
        for name, (_, _, text, label) in DATA.items():
            where = self.federation.sites[name].folder / "data"
            lines += [f"[tasks.{name}]", 'source = "files"', f'path = "{where}"', f'text = ["{text}"]',
                      f'label = "{label}"', 'splits = {train = "train", validation = "", test = "test"}']  # fmt: skip
        (home / "suite.toml").write_text("\n".join(lines))
        settings = [line for line in self.recipe(2, 3).splitlines() if line and "sites" not in line]
        (home / "same.toml").write_text("\n".join([f'suite = "{home}/suite.toml"', *settings,
            f"finetune.max-examples = {LIMITS['max-examples']}", "finetune.micro-batch-size = 16"]))  # fmt: skip
        done = subprocess.run(
            ["cold-flower", "simulate", "same.toml", "--run-dir", str(home / "same")],
            cwd=home, env=self.federation.coordinator.env, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        self.hold(
            "the same as a simulation",
            done.returncode == 0,
            self.steps("same") or done.stderr[-500:],
        )

    def disturbed(self) -> None:
        """A site is killed while it trains; the SuperLink is restarted, then killed."""
        federation = self.federation
        run = federation.deploy(self.recipe(3, 3), "disturbed")
        home = federation.sites["clinic-c"]

        def asked(iteration: int) -> Callable[[], Any]:
            return lambda: (
                run.poll() is not None
                or any(
                    f"iteration {iteration}: asking" in e["line"]
                    for e in federation.rows("disturbed", "progress.jsonl")
                )
            )

        wait_for(asked(1), 600, "iteration 1")
        wait_for(lambda: home.log("supernode").count("Receiving: train") > 2, 60, "a train message")
        time.sleep(4)
        home.kill("supernode")
        killed = time.monotonic()
        say("clinic-c is killed while it finetunes")
        wait_for(
            lambda: federation.rows("disturbed", "contributions.jsonl"),
            400,
            "iteration 1 is published",
        )
        say(f"iteration 1 published {time.monotonic() - killed:.0f} s after the kill")
        time.sleep(max(0.0, 75 - (time.monotonic() - killed)))
        home.start("supernode")
        wait_for(asked(2), 400, "iteration 2")
        time.sleep(6)
        federation.coordinator.kill("superlink", signal.SIGTERM, family=False)
        say("the SuperLink is stopped (SIGTERM) in iteration 2")
        time.sleep(3)
        federation.start_superlink()
        wait_for(asked(3), 600, "iteration 3")
        time.sleep(6)
        federation.coordinator.kill("superlink", family=False)
        say("the SuperLink is killed (SIGKILL) in iteration 3")
        time.sleep(3)
        federation.start_superlink()
        code, out = self.finish(run)
        say("\n" + out)
        rows = federation.rows("disturbed", "contributions.jsonl")
        verdicts = {(r["iteration"], r["contributor"]): r["verdict"] for r in rows}
        one = [verdicts.get((1, name)) for name in DATA]
        self.hold(
            "a site is killed while it finetunes: the rest goes on",
            one == ["accepted", "accepted", "refused"],
            str(one),
        )
        self.hold(
            "it returns and takes part in the next",
            verdicts.get((2, "clinic-c")) == "accepted",
            str(verdicts),
        )
        if code:
            say("resuming after the SIGKILL")
            code, out = self.finish(federation.deploy(self.recipe(3, 3), "disturbed", "--resume"))
            say("\n" + out)
            self.hold("SIGKILL of the SuperLink: --resume goes on", code == 0)
        else:
            self.hold("SIGKILL of the SuperLink: the run goes on by itself", True)
        rows = federation.rows("disturbed", "contributions.jsonl")
        done = {r["iteration"] for r in rows}
        self.hold(
            "SIGTERM and restart of the SuperLink in an iteration",
            2 in done,
            self.steps("disturbed"),
        )
        self.hold("all 3 iterations are there", done == {1, 2, 3})
        say(f"database after the run: {self.database()}")

    def wrong_column(self) -> None:
        """One site names a column that is not there."""
        site = self.federation.sites["clinic-c"]
        path = site.folder / "site.toml"
        right = path.read_text()
        path.write_text(right.replace('label = "tone"', 'label = "mood"'))
        code, out = self.finish(self.federation.deploy(self.recipe(1, 2), "wrong-column"))
        path.write_text(right)
        say("\n" + out)
        own = (site.folder / "own" / "clinic-c" / "errors.log").read_text().strip().splitlines()[-1]
        told = [line for line in out.splitlines() if "clinic-c is left out" in line]
        self.hold("a wrong column: the others go on", code == 0 and bool(told), str(told))
        self.hold("the site's own error is clear", "no column 'mood'" in own, own)

    def compact(self) -> None:
        """The page's VACUUM on a database at rest; the sites stay registered."""
        coordinator = self.federation.coordinator

        def registered() -> set[str]:
            done = subprocess.run(
                ["flwr", "supernode", "ls", "partners", "--format", "json"],
                env=coordinator.env,
                capture_output=True,
                text=True,
            )
            return {node["node-id"] for node in json.loads(done.stdout)["nodes"]}

        known = registered()
        coordinator.kill("superlink", signal.SIGTERM, family=False)
        time.sleep(2)
        state = coordinator.folder / "state.db"
        before = state.stat().st_size
        coordinator.run("compact")
        after = state.stat().st_size
        self.federation.start_superlink()
        kept = len(known) >= len(DATA) and registered() == known
        figure = f"{before} bytes, then {after}; {len(known)} nodes registered before and after"
        self.hold("VACUUM gives the space back", kept and after < before, figure)

    def by_flwr_run(self) -> None:
        """The page's `flwr run`."""
        out = self.federation.coordinator.run("flwr-run", timeout=600, MODEL=self.model)
        runs = sorted((self.federation.coordinator.folder / "runs").glob("*/result.json"))
        result = runs and json.loads(runs[-1].read_text())
        good = bool(result) and result["status"] == "completed"
        self.hold("flwr run . partners", good, str(result) if result else out[-800:])

    def run(self) -> bool:
        """Show everything."""
        self.federation.open()
        try:
            port = self.nginx()
            for name in DATA:
                settle(self.federation, name, port, self.small)
            self.refused()
            site = self.federation.sites["clinic-a"]
            say("\n" + "\n".join(site.run("site-check", timeout=300).splitlines()[:12]))
            for name in DATA:
                self.federation.sites[name].start("supernode")
            for part in (
                self.plain,
                self.wrong_column,
                self.disturbed,
                self.by_flwr_run,
                self.compact,
                self.simulated,
            ):
                try:
                    part()
                except Exception as error:
                    self.hold(part.__name__, False, repr(error)[:500])
            say("\n" + site.run("site-log"))
        finally:
            self.federation.close()
        say(str(self.results))
        return all(self.results.values())


def sites(folder: Path) -> bool:
    """Show three real sites (needs COLD_FLOWER_REAL)."""
    return Show(folder).run()


def sites_small(folder: Path) -> bool:
    """Show the same with the demo's model and tasks."""
    return Show(folder, small=True).run()
