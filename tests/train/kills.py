"""Kill the trainer again and again, fill its disk, damage what it saved; compare with a run left in peace.

python tests/train/kills.py --kills 200 --full 10 --seed 0

The command itself runs as a process and gets SIGKILL: at any instant of its life, while it trains, or after a
random part of the time that a checkpoint takes, as soon as one is begun. Then `--resume`, and the next kill,
until the run ends: its tensors, state, log and summary must equal the other's. Exit code 1 if they do not, if
a run is lost, if a damaged checkpoint is taken for a whole one, or if too few kills fell inside a write.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny

from bitnet_ref.checks import CheckError
from bitnet_ref.config import cache_dir
from bitnet_ref.formats.checkpoint import (
    MARK,
    STATE,
    TENSORS,
    checkpoints,
    latest,
    read_state,
    read_tensors,
    verified,
)
from bitnet_ref.train import log

GIVEN = {"steps": 60, "save_every": 2, "eval_every": 6, "keep": 2, "eval_windows": 2}
CASES = {
    "numpy": {"backend": "numpy"},
    "numba, keep 1": {"keep": 1, "save_every": 3},
    "stale trits": {"backend": "numpy", "requantize_every": 4, "log_every": 5, "accumulate": 2, "batch": 2},
    "early stop": {"backend": "numpy", "patience": 4, "lr": 1e-12, "weight_decay": 0.0},
}
INSIDE = 0.2                 # share of the kills that must fall inside the write of a checkpoint
PER_CHAIN = 20               # kills of one worker's errand
DISK = 24 << 20              # bytes of the small file system
PATIENCE = 300               # seconds after which a process hangs


class Trainer:
    """The command as a process, on one run folder."""

    def __init__(self, run, case, limit=None):
        resumes = (run / "config.json").exists()
        what = ["--resume", str(run)] if resumes else ["--output", str(run), *tiny.flags(**{**GIVEN, **case})]
        self.run, self.began = run, time.monotonic()
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")          # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, "-m", "bitnet_ref.train", *what], stderr=self.errors,
                                        env=tiny.environment(), stdout=subprocess.DEVNULL,
                                        preexec_fn=limit and (lambda: limit_files(limit)))

    def lives(self):
        if time.monotonic() - self.began > PATIENCE:
            self.process.kill()
        return self.process.poll() is None

    def wait(self):
        """The exit code."""
        while self.lives():
            time.sleep(0.002)
        return self.process.returncode

    def wait_until(self, happened):
        """Whether it did before the process ended."""
        while not (done := happened()) and self.lives():
            time.sleep(0.0002)
        return done

    def sleep(self, seconds):
        """At most until the process ends."""
        end = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() >= end)

    def said(self):
        self.errors.seek(0)
        return self.errors.read()


def limit_files(n_bytes):
    """Stands for a full disk where no small one can be mounted: no file grows beyond that."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def writing(run):
    """The names of checkpoints that are being written."""
    try:
        return {e.name for e in os.scandir(run) if e.name.endswith((".partial", ".replaced"))}
    except OSError:
        return set()


def size_of_log(run):
    try:
        return (run / log.LOG).stat().st_size
    except OSError:
        return 0


def outcome(run):
    """All that two equal runs have in common."""
    checkpoint = latest(run)
    state = read_state(checkpoint)
    held = read_tensors(checkpoint, state, tensor_names(checkpoint))
    tensors = {n: t.tobytes() for n, t in held.items()}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in log.read(run)]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    best = (run / "best.json").read_text()
    kept = [c.name for c in checkpoints(run)]
    return {"tensors": tensors, "state": state, "log": lines, "best": best, "kept": kept,
            "summary": {k: v for k, v in summary.items() if k not in ("machine", "pictures", "speed")}}


def tensor_names(checkpoint):
    with open(checkpoint / TENSORS, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


class Peace:
    """The runs that nothing happens to, one for each case: their ends, and how long things take."""

    def __init__(self, folder):
        self.ends, self.alive, self.write = {}, {}, {}
        for number, (name, case) in enumerate(CASES.items()):
            self.watch(name, Trainer(folder / f"peace-{number}", case))

    def watch(self, name, trainer):
        spans, seen = [], None
        while trainer.lives():
            now, busy = time.monotonic(), writing(trainer.run)
            if busy and seen is None:
                seen = now
            elif not busy and seen is not None:
                spans.append(now - seen)
                seen = None
            time.sleep(0.0002)
        assert trainer.wait() == 0, trainer.said()
        self.alive[name] = time.monotonic() - trainer.began
        self.write[name] = sorted(spans)[len(spans) // 2]
        self.ends[name] = outcome(trainer.run)


def kill(trainer, peace, name, chance):
    """SIGKILL at a random instant of one of three kinds. Whether the process still ran."""
    kind = chance.choices(["write", "train", "any"], [5, 3, 2])[0]
    if kind == "any":
        trainer.sleep(chance.uniform(0, peace.alive[name]))
    elif kind == "train":
        before = size_of_log(trainer.run)
        trainer.wait_until(lambda: size_of_log(trainer.run) != before)
        trainer.sleep(chance.uniform(0, peace.alive[name] / 4))
    else:
        for _ in range(chance.randint(1, 3)):
            trainer.wait_until(lambda: not writing(trainer.run))
            trainer.wait_until(lambda: writing(trainer.run))
        trainer.sleep(chance.uniform(0, peace.write[name]))
    ran = trainer.lives()
    trainer.process.kill()
    trainer.process.wait()
    return ran


def damage(checkpoint, chance):
    """What a bad disk does."""
    file = checkpoint / chance.choice([TENSORS, STATE, MARK])
    if chance.random() < 0.3:
        file.unlink()
    elif chance.random() < 0.5:
        os.truncate(file, chance.randrange(file.stat().st_size))
    else:
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)


class Errand:
    """So many kills, over as many runs as it takes."""

    def __init__(self, folder, peace, number, seed):
        self.folder, self.peace, self.number = folder, peace, number
        self.chance, self.count, self.faults = random.Random(f"{seed} {number}"), Counter(), []

    def fault(self, what, detail):
        self.count[what] += 1
        self.faults.append(f"{what}: {detail}"[-2000:])

    def kills(self, quota):
        names = list(CASES)
        while self.count["kills"] < quota and not self.faults:
            name = names[(self.number + self.count["runs"]) % len(names)]
            self.one_run(self.folder / f"run-{self.number}-{self.count['runs']}", name, quota)
        return self

    def one_run(self, run, name, quota):
        self.count["runs"] += 1
        hurt = 0
        while True:
            trainer = Trainer(run, CASES[name])
            if self.count["kills"] >= quota or not kill(trainer, self.peace, name, self.chance):
                break
            self.count["kills"] += 1
            self.count["inside a checkpoint write"] += bool(writing(run))
            if not list(run.glob("step-*")) and not list(run.glob(".step-*.replaced")):
                self.count["before the first checkpoint"] += 1
                shutil.rmtree(run, ignore_errors=True)
                continue
            aside = list(run.glob("damaged-*"))
            bad = self.unsound(run)
            if len(bad) > hurt - len(aside):
                self.fault("corrupt", f"{run}: {bad}")
            if hurt == len(aside) and len(checkpoints(run)) > 1 and self.chance.random() < 0.12:
                damage(latest(run), self.chance)
                hurt += 1
        self.count["damaged on purpose"] += hurt
        self.compare(trainer, name, hurt)
        told = ", ".join(f"{n} {what}" for what, n in self.count.items())
        print(f"errand {self.number}, {name}: {'; '.join(self.faults) or 'equal'} ({told})", file=sys.stderr)

    def unsound(self, run):
        """Checkpoints that are not whole."""
        found = []
        for checkpoint in checkpoints(run, marked=False):
            try:
                verified(checkpoint)
            except CheckError as e:
                found.append(str(e))
        return found

    def compare(self, trainer, name, hurt=0):
        code, run = trainer.wait(), trainer.run
        if code != 0:
            self.fault("lost", f"{run}: exit code {code}: {trainer.said()}")
            return
        if len(list(run.glob("damaged-*"))) != hurt:
            self.fault("corrupt", f"{run}: {hurt} damaged, not all set aside")
        ours, theirs = outcome(run), self.peace.ends[name]
        differ = [k for k in ours if ours[k] != theirs[k]]
        if differ:
            self.fault("unequal", f"{run}: {', '.join(differ)}")
        left = [p.name for p in run.rglob(".*") if p.name != ".lock"]
        if left:
            self.fault("left behind", f"{run}: {left}")
        if not self.faults:
            shutil.rmtree(run)

    def full(self, mounted):
        """One run whose disk fills at a random instant; then room is made."""
        name = list(CASES)[self.number % len(CASES)]
        disk = self.folder / f"disk-{self.number}"
        disk.mkdir()
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
        for n in range(20):
            self.count["runs"] += 1
            run, filler = disk / f"run-{n}", disk / "filler"
            size = sum(f.stat().st_size for f in (self.folder / "peace-0").glob("step-*/*"))
            trainer = Trainer(run, CASES[name])
            trainer.sleep(self.chance.uniform(0.3, 0.9) * self.peace.alive[name])
            if mounted:
                fill(filler, self.chance.choice([0, self.chance.randrange(size)]))
            else:                                          # killed, and not allowed to write much afterwards
                trainer.process.kill()
                trainer.wait()
                trainer = Trainer(run, CASES[name], self.chance.randrange(size // 2))
            code, said = trainer.wait(), trainer.said()
            filler.unlink(missing_ok=True)
            if code != 0:
                self.count["disk full"] += 1
                errors = [line for line in said.splitlines() if line.startswith("error: ")]
                if code != 2 or "Traceback" in said or len(errors) != 1 or "; got " not in errors[0]:
                    self.fault("no plain error", said)
                if not checkpoints(run):
                    self.count["before the first checkpoint"] += 1
                    shutil.rmtree(run, ignore_errors=True)
                self.compare(Trainer(run, CASES[name]), name)
                break
            shutil.rmtree(run)
        return self


def fill(filler, leave):
    """Fill the file system but for about so many bytes."""
    with open(filler, "wb", buffering=0) as f:
        stat = os.statvfs(filler)
        f.write(bytes(max(0, stat.f_bavail * stat.f_frsize - leave)))


def may_mount():
    """Whether disks may be mounted: in a name space of its own, in which this process then begins anew."""
    if os.environ.get("KILLS_MOUNTS"):
        return True
    try:
        tried = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
        done = subprocess.run(tried, capture_output=True)
    except OSError:
        return False
    if done.returncode == 0:
        os.environ["KILLS_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", type=int, default=2, help="disks that fill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    mounted, began = may_mount(), time.monotonic()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir() / "numba"))
    folder = Path(tempfile.mkdtemp(prefix="bitnet-ref-kills-"))
    os.environ["BITNET_REF_CACHE"] = str(folder / "cache")
    peace = Peace(folder)
    quotas = [min(PER_CHAIN, args.kills - n) for n in range(0, args.kills, PER_CHAIN)]
    errands = [Errand(folder, peace, n, args.seed) for n in range(len(quotas) + args.full)]
    todo = [lambda e=e, q=q: e.kills(q) for e, q in zip(errands, quotas)]
    todo += [lambda e=e: e.full(mounted) for e in errands[len(quotas):]]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = [future.result() for future in [pool.submit(errand) for errand in todo]]
    sys.exit(report(args, done, mounted, time.monotonic() - began, folder))


def report(args, errands, mounted, seconds, folder):
    """Print the table. The exit code."""
    count, faults = Counter(), [f for e in errands for f in e.faults]
    for errand in errands:
        count.update(errand.count)
    rows = ["runs", "kills", "inside a checkpoint write", "before the first checkpoint", "damaged on purpose",
            "disk full", "lost", "corrupt", "unequal", "left behind", "no plain error"]
    for row in rows:
        print(f"{row:30} {count[row]:6}")
    print(f"{'seconds':30} {seconds:6.0f}")
    print(f"disks: {'a small one of its own each' if mounted else 'a limit on the size of files'}")
    enough = (count["kills"] >= args.kills and count["disk full"] >= args.full
              and count["inside a checkpoint write"] >= INSIDE * args.kills)
    print("\n".join(faults) or ("every final state equal" if enough else "too few kills inside a write"))
    if enough and not faults:
        for disk in folder.glob("disk-*"):
            subprocess.run(["umount", str(disk)], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"what is left is in {folder}")
    return 1


if __name__ == "__main__":
    main()
