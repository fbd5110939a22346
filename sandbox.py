"""Runs Python code written by a model and returns the text that the model gets to read.

The trainer makes one `PythonSandbox`; `run(code)` may be called from many threads. Behind it stand a
few worker processes. A worker is this same file, executed afresh (so it holds no memory of the
trainer), which imports the slow libraries once. For each call it forks a keeper, which reads the code,
forks the child that runs it, watches that child and answers: calls neither wait for each other nor
meet. A child starts within milliseconds, finds sympy imported, and takes its mess with it.

What holds a child, on Linux:
  Landlock (kernel 5.13+)  reads: /usr, /lib and the Python installation; writes: /dev/null. It is alone in
                           its domain: no other process, be it keeper, worker or trainer, opens to it.
  seccomp                  an allow-list of system calls; any other fails with "Operation not permitted".
                           No new processes or threads, network, signals, ptrace, files, shared memory.
  no capabilities          even for root, nor any way back to them.
  rlimits and the keeper   CPU seconds, memory, open files, output; time by the clock: 3x the CPU seconds,
                           not counting up to 27x in line for a busy processor.
There is no folder to write to: open(..., "w") and `tempfile` raise PermissionError. If one of the first
two is missing (seccomp: on processors without a column below), `level` says what is left and one line is
printed. With neither (macOS, say) the sandbox demands `allow_unsafe=True`. It does not run without fork.

What it does not do. It shares the kernel: a kernel bug is a way out, so use a virtual machine against
an adversary rather than a policy under training. Whether a known path exists, its size, times and link
target can be looked up anywhere, though not contents nor listings; whatever lies in /usr or the Python
installation can be read, so keep data and keys out of there. With seccomp alone the code reads every
file its user can and, through /proc, the environment, memory and pipes of that user's other processes,
the trainer included, but can send nothing out. Landlock alone leaves the network, modes and times of
files, to root new processes, and before kernel 6.12 signals. Calls share the CPU caches and the clock
(side channels). Limits are per call, and CALLS_AT_ONCE may run, each with `memory_mb`; where memory runs
out, calls are killed first. The text that comes back is the code's own: never trust it as markup. Hashes,
`random` and preloaded `numpy.random` are seeded; addresses, clocks and `default_rng()` differ from call
to call. The aarch64 column has only been compared with the kernel's list, never run.
"""

import ast
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import linecache
import math
import os
import platform
import queue
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref

SOURCE_NAME = "<python>"       # how the model's code is called in its tracebacks
NO_WORKER = "Crashed: no sandbox worker could run this"  # begins a text that is not about the code
SHOWN_FRAMES = 4               # innermost frames kept in a traceback
OUTPUT_BYTES = 1_000_000       # a child that prints more is stopped
OPEN_FILES = 64
CALLS_AT_ONCE = 16             # in one sandbox, unless it has more workers; others wait
WALL_FACTOR = 3                # wall seconds per CPU second: a call may sleep
BUSY_FACTOR = 10               # and that many times more where others hold the CPU
START_SECONDS = 120            # importing sympy from a cold network disk is slow

WARNINGS = {
    "seccomp": "no Landlock in this kernel: code can read your files, but not write or send anything",
    "landlock": "no seccomp here: code can reach the network and, before kernel 6.12, other processes",
    "rlimits": "NO confinement: code can do whatever you can, only time and memory are limited",
}


# --------------------------------------------------------------------------------- the trainer's side


class PythonSandbox:
    """A pool of workers. `level` names the confinement: landlock+seccomp, seccomp, landlock or rlimits."""

    def __init__(self, workers=2, cpu_seconds=5.0, memory_mb=1024, max_output=2000,
                 preload=("math", "numpy", "sympy"), allow_unsafe=False):
        if not hasattr(os, "fork"):
            raise RuntimeError("PythonSandbox needs fork(): use Linux, macOS, or WSL2 on Windows")
        self.level = confinement_level()
        if self.level == "rlimits" and not allow_unsafe:
            raise RuntimeError("neither Landlock nor seccomp is available, so model-written code would run "
                               "with all your rights; pass allow_unsafe=True to accept that")
        if self.level in WARNINGS:
            print(f"PythonSandbox: {WARNINGS[self.level]}", file=sys.stderr)
        settings = {"cpu_seconds": math.ceil(cpu_seconds), "memory_mb": memory_mb, "max_output": max_output,
                    "preload": list(preload), "level": self.level}
        self.workers = [Worker(settings) for _ in range(workers)]
        # Runs at close(), when the sandbox is forgotten, or at exit: whichever comes first.
        self.finish = weakref.finalize(self, lambda workers: [worker.close() for worker in workers], self.workers)
        self.start_anew()
        sandboxes.add(self)
        try:
            for worker in self.workers:  # each gets ready by itself, while the trainer loads its model
                worker.start()
        except OSError as error:
            self.finish()
            raise RuntimeError(f"the sandbox worker cannot start: {error}") from None

    def start_anew(self):
        """As if no call had been made. In a fork of the trainer the old workers are left to the trainer."""
        self.free = queue.SimpleQueue()  # a place for each call that may run
        for i in range(max(CALLS_AT_ONCE, len(self.workers))):
            self.free.put(self.workers[i % len(self.workers)])
        for worker in self.workers:
            worker.lock = threading.Lock()  # the old one may be held for ever, by a thread that was not forked
            worker.forget()

    def run(self, code: str) -> tuple[str, str]:
        """(text for the model, outcome: "ok", "error", "timeout" or "crash"). Raises only once it is closed."""
        worker, fault = self.free.get(), None
        try:
            for _ in range(5):  # two workers may be lost under it, each of which takes two tries to notice
                try:
                    return worker.call(code)
                except (OSError, ValueError) as error:  # a worker that died is not the code's doing
                    fault = error
            return f"{NO_WORKER} ({fault})", "crash"
        finally:
            self.free.put(worker)

    def close(self):
        """Kill everything, running calls included; they and later calls raise RuntimeError."""
        self.finish()


sandboxes = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [sandbox.start_anew() for sandbox in sandboxes])


class Worker:
    """The trainer's handle on one worker process, and on the next if that one is lost. For each call the worker
    is handed one end of a new socket pair, which becomes the keeper's."""

    def __init__(self, settings):
        self.settings, self.closed, self.process = settings, False, None
        self.answer_seconds = BUSY_FACTOR * WALL_FACTOR * settings["cpu_seconds"] + START_SECONDS

    def start(self):
        self.channel, theirs = socket.socketpair()
        with theirs:
            # Executed, not forked, so that the trainer's memory and its CUDA context stay outside.
            self.process = subprocess.Popen(
                [sys.executable, "-s", os.path.abspath(__file__), json.dumps(self.settings)], cwd="/",
                stdin=theirs, stdout=subprocess.DEVNULL, env=worker_environment(), start_new_session=True)

    def call(self, code):
        """Raises OSError or ValueError if the worker is dead or does not answer."""
        with self.lock:
            if self.closed:
                raise RuntimeError("the sandbox is closed")
            if not self.process:
                self.start()
            process, channel = self.process, self.channel
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(self.answer_seconds)
            try:
                socket.send_fds(channel, [b"!"], [theirs.fileno()])
                theirs.close()
                ours.sendall(json.dumps(code).encode() + b"\n")
                return tuple(receive(ours))
            except OSError as error:
                if theirs.fileno() != -1 or isinstance(error, TimeoutError):  # else only the call's keeper is gone
                    self.stop(process)
                raise

    def stop(self, process):
        with self.lock:
            if process and self.process is process:  # no other call did so meanwhile
                process.kill()  # its keepers see that, and kill their children
                process.wait()
                self.forget()

    def close(self):
        with self.lock:
            self.closed = True
        self.stop(self.process)

    def forget(self):
        if self.process:
            self.channel.close()
            self.process = None


def receive(stream):
    """A message, which is a line of JSON and the only one that comes."""
    with stream.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("it is gone")
    return json.loads(line)


def worker_environment():
    """Built from nothing: the trainer's environment may hold keys."""
    return {"PATH": os.defpath, "HOME": "/", "LANG": "C.UTF-8", "TZ": "UTC",
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),  # some Pythons need it to start
            "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# ---------------------------------------------------------------------------------- the worker's side


def serve(settings):
    """The worker's whole life. Standard input is the channel to the trainer."""
    if sys.stderr is None:  # closed in the trainer; another file must not get its number
        os.open(os.devnull, os.O_WRONLY)
    readable = ["/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix]
    roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in readable)
    # Other entries, such as this folder or an editable install, may lead to a data set's answers.
    sys.path[:] = [path for path in sys.path[1:] if os.path.realpath(path).startswith(roots)]
    if missing := preload(settings["preload"]):
        print("PythonSandbox: cannot preload", *missing, file=sys.stderr, flush=True)
    limits = prepare(settings, readable)
    gc.freeze()  # a collection in a child must not touch, and so copy, every page of sympy
    proof = run_child("6 * 7", limits)  # a confinement that fails must fail now, not under attack
    if proof != ("42", "ok"):
        raise SystemExit(f"PythonSandbox: cannot confine code, the first child said {proof}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    channel = socket.socket(fileno=0)
    while calls := socket.recv_fds(channel, 1, 1)[1]:
        with socket.socket(fileno=calls[0]) as caller, contextlib.suppress(OSError):  # no room for more
            if os.fork() == 0:
                keep(caller, channel, limits)


def preload(names):
    """Import what calls will want. Returns the names that cannot be imported."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    tempfile.tempdir = "/tmp"  # else it looks for a folder that it may write to, and says at length that there is none
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # lazy in numpy 2, and needed for the seed of every call
    if "sympy" in sys.modules:  # the first use of the solver imports and caches a great deal
        from sympy import Symbol, integrate, simplify, sin, solve
        x = Symbol("x")
        solve(x**2 - 1, x), simplify(sin(x) ** 2), integrate(x * sin(x), x)
    if "math_verify" in sys.modules:  # its parser learns from what it reads: a first formula takes 100 ms
        from math_verify import parse, verify
        for text in (r"(-2, \infty) \cup [1, 3)", "(1, 2)", "[1, 2]", r"x \in \{1, 2\}", r"y^2 + 2x \le -\frac{3k}{5}",
                     r"\begin{pmatrix} 1 & \frac{1}{3} \end{pmatrix}", r"\sqrt{2} \pm \log_2 8 \cdot \sin(2x)"):
            verify(parse(rf"\boxed{{{text}}}"), parse(rf"\boxed{{{text}}}"))
    return missing


def prepare(settings, readable):
    """Limit the worker as far as it can bear; the settings and what each child will need besides."""
    limits = types.SimpleNamespace(**settings, worker=os.getpid(), address_space=None, rules=None, filter=None)
    os.nice(5)
    lower_limit("RLIMIT_NOFILE", OPEN_FILES)
    lower_limit("RLIMIT_CORE", 0)
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            own = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits.address_space = own + limits.memory_mb * 2**20
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # if the machine runs out of memory, kill us and not the trainer
        drop_privileges()
    if limits.level == "seccomp":  # in place of Landlock, close our memory and files in /proc to our user
        LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if "landlock" in limits.level:
        limits.rules = landlock_rules(readable)
    if "seccomp" in limits.level:
        limits.filter = SeccompFilter(platform.machine(), may_write="landlock" in limits.level)
    return limits


def keep(caller, channel, limits):
    """The whole life of a call's keeper: read the code, have it run, answer."""
    try:
        channel.close()  # or the trainer would not notice when the worker is gone
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        answer = run_child(receive(caller), limits, caller)
        caller.sendall(json.dumps(answer).encode() + b"\n")
    except BaseException as error:
        if not isinstance(error, ConnectionError):
            traceback.print_exc()
    os._exit(0)


def run_child(code, limits, caller=None):
    """Fork, confine, run, collect. Returns (text, outcome)."""
    keeper = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        be_the_child(code, writer, keeper, limits)
    os.close(writer)
    try:
        output, stopped = collect(reader, caller, pid, limits)
    finally:
        os.kill(pid, signal.SIGKILL)  # at the end of output it is exiting anyway, and keeps its exit status
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # what it started, where that is possible
        _, status, usage = os.wait4(pid, 0)
    os.close(reader)
    note, outcome = stopped or verdict(status, usage.ru_utime + usage.ru_stime, limits.cpu_seconds)
    return compose(output.decode("utf-8", "replace"), note, limits.max_output), outcome


def collect(reader, caller, pid, limits):
    """Read until the child is done or must be stopped. Returns (output, None or (note, outcome))."""
    output, start, longest = bytearray(), time.monotonic(), WALL_FACTOR * limits.cpu_seconds
    while True:
        ready = select.select([reader, caller] if caller else [reader], [], [], 0.05)[0]
        if caller in ready or (caller and os.getppid() != limits.worker):
            raise ConnectionError("nobody waits for an answer")
        if reader in ready:
            piece = os.read(reader, 65536)
            output += piece
            if not piece:
                return output, None
            if len(output) > OUTPUT_BYTES:
                return output, (f"Stopped: more than {OUTPUT_BYTES:,} bytes of output", "error")
        lasted = time.monotonic() - start
        if lasted > longest and lasted - min(seconds_in_line(pid), (BUSY_FACTOR - 1) * longest) > longest:
            return output, (f"TimeoutError: stopped after {longest} s", "timeout")


def seconds_in_line(pid):
    """How long a process could have run but for others that held the processor, where the system tells."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/schedstat") as counts:
        return int(counts.read().split()[1]) / 1e9
    return 0.0


def verdict(status, cpu_used, cpu_seconds):
    """What the end of a child means: (note, outcome)."""
    if os.WIFEXITED(status):
        return "", "ok" if os.WEXITSTATUS(status) == 0 else "error"
    name = next((known.name for known in signal.Signals if known == os.WTERMSIG(status)), "a real-time signal")
    if name == "SIGXCPU" or (name == "SIGKILL" and cpu_used > 0.9 * cpu_seconds):  # SIGXCPU can be ignored
        return f"TimeoutError: stopped after {cpu_seconds} s", "timeout"
    return f"Crashed: {name}", "crash"


def compose(output, note, room):
    """Join output and note within `room` characters, dropping from the middle of the output."""
    output = output.rstrip("\n")
    if not output:
        return note or "(no output; use print)"
    room -= len(note) + 1 if note else 0
    if len(output) > room:
        half = max(room - 45, 2) // 2  # 45: for the line that tells what is missing
        output = f"{output[:half]}\n[... {len(output) - 2 * half} characters dropped ...]\n{output[-half:]}"
    return f"{output}\n{note}" if note else output


# ------------------------------------------------------------------------------------------ the child


def be_the_child(code, writer, keeper, limits):
    """Runs in the forked child and never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        connect_standard_files(writer)
        confine(keeper, limits)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        status = execute(code)
        sys.__stdout__.flush()
    except BaseException as error:
        os.write(2, f"The sandbox failed: {error!r}".encode())
    finally:
        os._exit(status)  # no clean-up code of the worker may run here


def connect_standard_files(writer):
    """Nothing to read; both outputs into one pipe and one buffer, so that their order is kept."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    stream = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = stream


def execute(code):
    """Run code as a REPL would: the value of a final expression is shown. Returns an exit status."""
    terminal = sys.stdout  # the code may put something else in its place
    main = sys.modules["__main__"] = types.ModuleType("__main__")  # where pickle and dataclasses look
    try:
        linecache.cache[SOURCE_NAME] = (len(code), None, code.splitlines(True), SOURCE_NAME)
        tree = ast.parse(code, SOURCE_NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, SOURCE_NAME, "exec"), main.__dict__)
        if last:
            sys.displayhook(eval(compile(ast.Expression(last.value), SOURCE_NAME, "eval"), main.__dict__))
    except SystemExit as leaving:
        if leaving.code is not None and not isinstance(leaving.code, int):
            print(leaving.code, file=terminal)
        return 0 if leaving.code in (None, 0) else 1
    except BaseException as error:
        print(short_traceback(error), file=terminal)
        return 1
    return 0


def short_traceback(error):
    """The innermost frames of the model's own code and the message, without lines of ^ and ~."""
    frames = [traceback.FrameSummary(SOURCE_NAME, line, frame.f_code.co_name)
              for frame, line in traceback.walk_tb(error.__traceback__)
              if frame.f_code.co_filename == SOURCE_NAME][-SHOWN_FRAMES:]
    heading = ["Traceback (most recent call last):\n"] if frames else []
    message = traceback.format_exception_only(type(error), error)
    text = "".join(heading + traceback.format_list(frames) + message)
    return "\n".join(line for line in text.splitlines() if line.strip(" ^~"))


# ---------------------------------------------------------------------------------------- confinement


LIBC = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 38, 47, 4, 2


def confinement_level():
    """What this system offers, found out without changing anything."""
    landlock = seccomp = False
    if sys.platform == "linux":
        landlock = landlock_version() > 0
        LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)  # no filter given: EFAULT where known
        seccomp = platform.machine() in MACHINES and ctypes.get_errno() == errno.EFAULT
    return "+".join(["landlock"] * landlock + ["seccomp"] * seccomp) or "rlimits"


def drop_privileges():
    """For the worker and all after it: no capabilities, and no way back to them."""
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):  # where we have not the right to, nothing is there to drop
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if LIBC.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)):  # version 3; effective, permitted, inheritable
        raise OSError(ctypes.get_errno(), "capabilities were not dropped")


def confine(keeper, limits):
    """The child's last trusted act. If any of it fails the code does not run."""
    lower_limit("RLIMIT_CPU", limits.cpu_seconds, spare=1)  # SIGXCPU, and a second later SIGKILL
    lower_limit("RLIMIT_NPROC", 0)
    lower_limit("RLIMIT_FSIZE", 0)
    if sys.platform == "linux":
        lower_limit("RLIMIT_AS", limits.address_space)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it died before the line above
            os._exit(1)
    if limits.rules is not None:
        call_kernel(LANDLOCK_RESTRICT, limits.rules, 0)
    os.closerange(3, OPEN_FILES)
    if limits.filter:
        limits.filter.install()


def lower_limit(name, value, spare=0):
    import resource  # not on Windows, where this file can at least be imported
    kind = getattr(resource, name)
    ceiling = resource.getrlimit(kind)[1]
    room = math.inf if ceiling == resource.RLIM_INFINITY else ceiling
    resource.setrlimit(kind, (min(value, room), min(value + spare, room)))


# Landlock (docs.kernel.org/userspace-api/landlock.html). Its calls have one number on every processor.
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of rights by version; 16 later on
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14


def call_kernel(number, *arguments):
    wide = [ctypes.c_long(part) if isinstance(part, int) else part for part in (number, *arguments)]
    result = LIBC.syscall(*wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number} failed")
    return result


def landlock_version():
    try:
        return call_kernel(LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock_rules(readable):
    """Deny every file right, then grant a few back. A descriptor: each child that enters gets its own domain."""
    version = landlock_version()
    rights = (1 << FILE_RIGHTS.get(version, 16)) - 1
    tcp = 3 if version >= 4 else 0     # binding and connecting
    scopes = 3 if version >= 6 else 0  # abstract sockets of, and signals to, the world outside
    rules = call_kernel(LANDLOCK_CREATE, struct.pack("=QQQ", rights, tcp, scopes), 24, 0)
    granted = {"/dev/null": READ_FILE | WRITE_FILE | TRUNCATE, "/dev/urandom": READ_FILE}
    granted.update(dict.fromkeys(filter(os.path.isdir, readable), READ_FILE | READ_DIR))
    for path, wanted in granted.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call_kernel(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", wanted & rights, place), 0)
        os.close(place)
    return rules


# seccomp. Every allowed system call with its number on x86_64 and on aarch64 (- where it does not exist:
# there the C library uses a newer one).
SYSTEM_CALLS = """
read 0 63  write 1 64  open 2 -  close 3 57  stat 4 -  fstat 5 80  lstat 6 -  poll 7 -  lseek 8 62  mmap 9 222
mprotect 10 226  munmap 11 215  brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139
ioctl 16 29  pread64 17 67  readv 19 65  writev 20 66  access 21 -  pipe 22 -  select 23 -  sched_yield 24 124
mremap 25 216  madvise 28 233  dup 32 23  dup2 33 -  pause 34 -  nanosleep 35 101  getitimer 36 102  alarm 37 -
setitimer 38 103  getpid 39 172  sendto 44 206  recvfrom 45 207  shutdown 48 210  getsockname 51 204
getpeername 52 205  socketpair 53 199  getsockopt 55 209  exit 60 93  uname 63 160  fcntl 72 25  getdents 78 -
getcwd 79 17  chdir 80 49  fchdir 81 50  readlink 89 -  gettimeofday 96 169  getrlimit 97 163  getrusage 98 165
sysinfo 99 179  times 100 153  getuid 102 174  getgid 104 176  geteuid 107 175  getegid 108 177  getppid 110 173
getpgrp 111 -  getgroups 115 158  getresuid 118 148  getresgid 120 150  getpgid 121 155  getsid 124 156
rt_sigpending 127 136  rt_sigtimedwait 128 137  rt_sigsuspend 130 133  sigaltstack 131 132  statfs 137 43
fstatfs 138 44  gettid 186 178  time 201 -  futex 202 98  sched_getaffinity 204 123  epoll_create 213 -
getdents64 217 61  restart_syscall 219 128  fadvise64 221 223  clock_gettime 228 113  clock_getres 229 114
clock_nanosleep 230 115  exit_group 231 94  epoll_wait 232 -  epoll_ctl 233 21  openat 257 56  newfstatat 262 79
readlinkat 267 78  faccessat 269 48  pselect6 270 72  ppoll 271 73  epoll_pwait 281 22  eventfd 284 -
eventfd2 290 19  epoll_create1 291 20  dup3 292 24  pipe2 293 59  prlimit64 302 261  getcpu 309 168
getrandom 318 278  statx 332 291  close_range 436 436  faccessat2 439 439  epoll_pwait2 441 441
"""
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
ANY_BIT = 0xFFFFFFFF


def call_rules(may_write):
    """{call: (error, conditions)}; a condition is (32-bit word of the arguments, mask, allowed values)."""
    # O_TRUNC alone would empty a file that Landlock before version 3 takes as only read.
    ways = [how | new for how in (os.O_WRONLY, os.O_RDWR) for new in (0, os.O_CREAT)] if may_write else []
    opening = (os.O_ACCMODE | os.O_TRUNC | os.O_CREAT, {os.O_RDONLY, *ways, *(way | os.O_TRUNC for way in ways)})
    return {
        "open": (errno.EPERM, [(2, *opening)]),
        "openat": (errno.EPERM, [(4, *opening)]),
        # FIONBIO, FIOCLEX, FIONCLEX. ENOTTY, so that isatty() answers no.
        "ioctl": (errno.ENOTTY, [(2, ANY_BIT, {0x5421, 0x5450, 0x5451})]),
        # F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC. F_SETOWN would send signals in the kernel's name.
        "fcntl": (errno.EPERM, [(2, ANY_BIT, {*range(5), 1030})]),
        # NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, (NO)HUGEPAGE, (DO|DONT)DUMP: what allocators say.
        "madvise": (errno.EINVAL, [(4, ANY_BIT, {0, 1, 2, 3, 4, 8, 14, 15, 16, 17})]),
        # Changing another's limits: only reading, with a null pointer for the new ones.
        "prlimit64": (errno.EPERM, [(4, ANY_BIT, {0}), (5, ANY_BIT, {0})]),
        # asyncio talks to itself over a pair of streams; an address would lead to other processes.
        "socketpair": (errno.EPERM, [(0, ANY_BIT, {1}), (2, 0xF, {1})]),
        "sendto": (errno.EPERM, [(8, ANY_BIT, {0}), (9, ANY_BIT, {0})]),
    }


class SeccompFilter:
    """The allow-list as a program for the kernel's packet-filter machine."""

    LOAD, JUMP_IF_EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
    ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000

    def __init__(self, machine, may_write):
        column, architecture = MACHINES[machine]
        words, rules = SYSTEM_CALLS.split(), call_rules(may_write)
        program = [(self.LOAD, 0, 0, 4), (self.JUMP_IF_EQUAL, 1, 0, architecture),
                   (self.RETURN, 0, 0, self.KILL), (self.LOAD, 0, 0, 0)]
        for name, number in zip(words[::3], words[1 + column :: 3]):
            if number != "-":
                steps = self.check(*rules.get(name, (0, [])))
                program += [(self.JUMP_IF_EQUAL, 0, len(steps), int(number)), *steps]
        program.append((self.RETURN, 0, 0, self.ERROR | errno.EPERM))
        code = b"".join(struct.pack("=HBBI", *step) for step in program)
        # Both buffers must outlive the call: the kernel follows the address inside the second.
        self.code = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("@HP", len(program), ctypes.addressof(self.code))
        self.header = ctypes.create_string_buffer(header, len(header))

    def check(self, error, conditions):
        """Steps that allow the call if every condition holds. A jump counts the steps that it skips."""
        steps = []
        for word, mask, values in conditions:
            steps += [(self.LOAD, 0, 0, 16 + 4 * word), (self.AND, 0, 0, mask)]
            steps += [(self.JUMP_IF_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
            steps += [(self.RETURN, 0, 0, self.ERROR | error)]
        return steps + [(self.RETURN, 0, 0, self.ALLOW)]

    def install(self):
        if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self.header, 0, 0):
            raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
