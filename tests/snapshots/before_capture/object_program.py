"""Make kernel objects, and say later whether they still work: `object_program.py KIND,KIND FOLDER`.

It listens on 127.0.0.1:8000 and answers each connection with one JSON line. For each kind the value is true if the object is
unchanged, and `none here` if this machine has no such objects.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import multiprocessing
import multiprocessing.synchronize
import os
import pty
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Probe = Callable[[], bool]

libc = ctypes.CDLL(None, use_errno=True)
private = os.environ["TMPDIR"]
sleepers: list[int] = []


def child(action: Callable[[], object]) -> int:
    """Start a child that does something and then sleeps; return its pid once it did."""
    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        action()
        os.write(tell, b"!")
        time.sleep(600)
    os.read(told, 1)
    return pid


def own_namespace(flag: int) -> Probe:
    """A child in a namespace of its own."""
    pid = child(lambda: libc.unshare(flag))
    return lambda: Path(f"/proc/{pid}").exists()


def memfd(*, mapped: bool, opened: bool) -> Probe:
    """A memory file that is mapped, open, or both."""
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 65536)
    os.pwrite(fd, b"content", 0)
    view = mmap.mmap(fd, 65536) if mapped else None
    if not opened:
        os.close(fd)
        return lambda: view is not None and view[:7] == b"content"
    if view is None:
        return lambda: os.pread(fd, 7, 0) == b"content"

    def probe() -> bool:
        view[0:1] = b"v"
        os.pwrite(fd, b"d", 1)
        return os.pread(fd, 1, 0) == b"v" and view[1:2] == b"d"

    return probe


def memfd_mapped() -> Probe:
    """Mapped alone."""
    return memfd(mapped=True, opened=False)


def memfd_open() -> Probe:
    """Open alone."""
    return memfd(mapped=False, opened=True)


def memfd_both() -> Probe:
    """Mapped and open."""
    return memfd(mapped=True, opened=True)


def memfd_two() -> Probe:
    """Mapped by two processes."""
    fd = os.memfd_create("two")
    os.ftruncate(fd, 4096)
    view = mmap.mmap(fd, 4096)
    os.close(fd)
    asked, ask = os.pipe()
    told, tell = os.pipe()
    if os.fork() == 0:
        while os.read(asked, 1):
            view[0:1] = b"c"
            os.write(tell, b"!")
        os._exit(0)

    def probe() -> bool:
        view[0:1] = b"p"
        os.write(ask, b"?")
        os.read(told, 1)
        return view[0:1] == b"c"

    return probe


def orphan() -> Probe:
    """A helper that left the tree."""
    told, tell = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(tell, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    pid = int(os.read(told, 20))
    return lambda: Path(f"/proc/{pid}").exists()


def unix_listener(path: str) -> Probe:
    """A unix socket that listens."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    door.listen(5)
    door.settimeout(1)

    def probe() -> bool:
        guest = socket.socket(socket.AF_UNIX)
        guest.connect(path)
        try:
            door.accept()
        except TimeoutError:
            return False
        return True

    return probe


def unix_outside() -> Probe:
    """In a folder that every replica sees."""
    return unix_listener(sys.argv[2] + "/door")


def unix_private() -> Probe:
    """In the private folder."""
    return unix_listener(private + "/door")


def unix_abstract() -> Probe:
    """Without a file."""
    return unix_listener("\0door")


def unix_peer_outside() -> Probe:
    """Connected to a listener outside of the sandbox."""
    guest = socket.socket(socket.AF_UNIX)
    guest.connect(sys.argv[2] + "/outer")
    return lambda: guest.send(b"x") == 1


def unix_half_closed() -> Probe:
    """One end of a pair, whose other end was closed."""
    one, other = socket.socketpair()
    other.close()
    return lambda: one.recv(1) == b""


def unix_pending() -> Probe:
    """A connection that was not accepted yet."""
    door = socket.socket(socket.AF_UNIX)
    door.bind("\0pending")
    door.listen(5)
    guest = socket.socket(socket.AF_UNIX)
    guest.connect("\0pending")
    return lambda: door.getsockname() == b"\0pending" and guest.fileno() > 0


def unix_datagram_queue() -> Probe:
    """A datagram that waits."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.send(b"waiting")
    sleepers.append(one.detach())
    return lambda: _peek(other) == b"waiting"


def _peek(sock: socket.socket) -> bytes:
    try:
        return sock.recv(20, socket.MSG_PEEK)
    except OSError:
        return b""


def unix_stream_queue() -> Probe:
    """Bytes that wait."""
    one, other = socket.socketpair()
    one.send(b"waiting")
    other.settimeout(1)
    sleepers.append(one.detach())
    return lambda: _peek(other) == b"waiting"


def udp_queue() -> Probe:
    """A datagram that waits on the loopback device."""
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.bind(("127.0.0.1", 9001))
    door.settimeout(1)
    guest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    guest.sendto(b"waiting", ("127.0.0.1", 9001))
    return lambda: _peek(door) == b"waiting"


def udp() -> Probe:
    """A UDP socket with nothing in it."""
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.bind(("127.0.0.1", 9001))
    return lambda: door.getsockname()[1] == 9001


def raw_socket() -> Probe:
    """A raw socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return lambda: sock.fileno() > 0


def packet_socket() -> Probe:
    """A packet socket."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    return lambda: sock.fileno() > 0


def netlink_socket() -> Probe:
    """A netlink socket."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, 0))
    return lambda: sock.getsockname()[0] > 0


def vsock() -> Probe:
    """A vsock socket."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    return lambda: sock.fileno() > 0


def alg_socket() -> Probe:
    """A socket of the kernel's cryptography."""
    sock = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    return lambda: sock.fileno() > 0


def sctp_socket() -> Probe:
    """An SCTP socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
    return lambda: sock.fileno() > 0


def pty_pair() -> Probe:
    """Both ends of a terminal."""
    _, slave = pty.openpty()
    return lambda: os.isatty(slave)


def deleted_file() -> Probe:
    """A deleted file that is larger than CRIU's own limit."""
    fd = os.open(private + "/gone", os.O_RDWR | os.O_CREAT)
    os.write(fd, os.urandom(3 << 20))
    Path(private, "gone").unlink()
    return lambda: os.fstat(fd).st_size == 3 << 20


def lock() -> Probe:
    """An unnamed POSIX semaphore."""
    held = multiprocessing.Lock()
    return lambda: held.acquire(timeout=1) and _release(held)


def _release(held: multiprocessing.synchronize.Lock) -> bool:
    held.release()
    return True


def sysv_semaphore() -> Probe:
    """A System V semaphore."""
    number = libc.semget(0, 1, 0o600)
    return lambda: libc.semctl(number, 0, 12) >= 0  # GETVAL


def sysv_queue() -> Probe:
    """A System V message queue."""
    number = libc.msgget(0, 0o600)
    space = ctypes.create_string_buffer(200)
    return lambda: libc.msgctl(number, 2, space) == 0  # IPC_STAT


def sysv_shm() -> Probe:
    """System V shared memory that nobody has attached."""
    number = libc.shmget(0, 4096, 0o600)
    space = ctypes.create_string_buffer(200)
    return lambda: libc.shmctl(number, 2, space) == 0


def sysv_attached() -> Probe:
    """System V shared memory, attached and marked for removal."""
    number = libc.shmget(0, 4096, 0o600)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    where = libc.shmat(number, None, 0)
    libc.shmctl(number, 0, None)
    ctypes.memmove(where, b"content", 7)
    return lambda: ctypes.string_at(where, 7) == b"content"


def message_queue() -> Probe:
    """A POSIX message queue."""
    fd = libc.mq_open(b"/queue", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600, None)
    libc.mq_send(fd, b"waiting", 7, 0)
    space = ctypes.create_string_buffer(8192)
    return lambda: libc.mq_receive(fd, space, 8192, None) == 7


def affinity() -> Probe:
    """The leader on one processor."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    mine = os.sched_getaffinity(0)
    return lambda: os.sched_getaffinity(0) == mine


def locked_memory() -> Probe:
    """Memory that may not be swapped."""
    view = mmap.mmap(-1, 16384)
    where = ctypes.addressof(ctypes.c_char.from_buffer(view))
    libc.mlock(ctypes.c_void_p(where), 16384)
    return lambda: len(view) == 16384 and _status("VmLck") >= 16


def locked_private() -> Probe:
    """Private memory that may not be swapped, more than what is mapped from the snapshot at least."""
    view = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view[:] = os.urandom(1 << 20)
    where = ctypes.addressof(ctypes.c_char.from_buffer(view))
    libc.mlock(ctypes.c_void_p(where), 1 << 20)
    return lambda: len(view) == 1 << 20 and _status("VmLck") >= 1024


def locked_all() -> Probe:
    """All memory locked, present and future."""
    assert libc.mlockall(3) == 0
    return lambda: _status("VmLck") > 4096


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def policy() -> Probe:
    """The batch scheduling class, which needs no privilege."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return lambda: os.sched_getscheduler(0) == os.SCHED_BATCH


def policy_rt() -> Probe:
    """A real-time class."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    return lambda: os.sched_getscheduler(0) == os.SCHED_RR and os.sched_getparam(0).sched_priority == 5


def nice() -> Probe:
    """A lower priority."""
    mine = os.nice(3)
    return lambda: os.getpriority(os.PRIO_PROCESS, 0) == mine


def io_priority() -> Probe:
    """The idle class of disks."""
    libc.syscall(251, 1, 0, 3 << 13)
    return lambda: libc.syscall(252, 1, 0) == 3 << 13


def timer_fd() -> Probe:
    """A timer that is read."""
    fd = libc.timerfd_create(1, 0)
    libc.timerfd_settime(fd, 0, (ctypes.c_long * 4)(0, 100_000_000, 0, 100_000_000), None)
    return lambda: bool(select.select([fd], [], [], 2)[0])


def interval_timer() -> Probe:
    """A timer that sends signals."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 100, 100)
    return lambda: signal.getitimer(signal.ITIMER_REAL)[1] == 100


def event_fd() -> Probe:
    """A counter."""
    fd = os.eventfd(7)
    return lambda: bool(select.select([fd], [], [], 0)[0])


def signal_fd() -> Probe:
    """Signals that are read."""
    mask = ctypes.create_string_buffer(128)
    libc.sigemptyset(mask)
    libc.sigaddset(mask, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    fd = libc.signalfd(-1, mask, 0)

    def probe() -> bool:
        os.kill(os.getpid(), signal.SIGUSR1)
        return bool(select.select([fd], [], [], 1)[0])

    return probe


def pid_fd() -> Probe:
    """A descriptor of a child."""
    pid = child(lambda: None)
    fd = os.pidfd_open(pid)

    def probe() -> bool:
        signal.pidfd_send_signal(fd, 0)
        return not select.select([fd], [], [], 0)[0]

    return probe


def inotify() -> Probe:
    """A watch on a folder."""
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, private.encode(), 0x100)

    def probe() -> bool:
        Path(private, str(time.monotonic_ns())).touch()
        return bool(select.select([fd], [], [], 1)[0])

    return probe


def inotify_outside() -> Probe:
    """A watch on a folder of the machine."""
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, sys.argv[2].encode(), 0x100)

    def probe() -> bool:
        Path(sys.argv[2], str(time.monotonic_ns())).touch()
        return bool(select.select([fd], [], [], 1)[0])

    return probe


def fanotify() -> Probe:
    """A fanotify watch."""
    fd = libc.fanotify_init(0, 0)
    assert fd >= 0
    return lambda: fd >= 0 and fcntl.fcntl(fd, fcntl.F_GETFD) >= 0


def epoll() -> Probe:
    """A set of descriptors."""
    poll = select.epoll()
    read, write = os.pipe()
    poll.register(read, select.EPOLLIN)
    os.write(write, b"x")
    return lambda: bool(poll.poll(1))


def lease() -> Probe:
    """A lease on a file."""
    fd = os.open(private + "/leased", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK


def ofd_lock() -> Probe:
    """A lock of an open file description."""
    fd = os.open(private + "/locked", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    return lambda: fd > 0


def aio() -> Probe:
    """A context of asynchronous I/O."""
    context = ctypes.c_ulong()
    assert libc.syscall(206, 8, ctypes.byref(context)) == 0
    events = ctypes.create_string_buffer(32 * 8)
    none = (ctypes.c_long * 2)(0, 0)
    return lambda: libc.syscall(208, context, 0, 1, events, none) == 0


def io_uring() -> Probe:
    """An io_uring."""
    fd = libc.syscall(425, 4, ctypes.create_string_buffer(120))
    assert fd >= 0
    return lambda: fd >= 0


def userfault() -> Probe:
    """A handler of page faults in user space."""
    fd = libc.syscall(323, 1)
    assert fd >= 0
    return lambda: fd >= 0


def perf() -> Probe:
    """A performance counter."""
    attributes = ctypes.create_string_buffer(112)
    ctypes.memmove(attributes, (ctypes.c_uint * 2)(1, 112), 8)
    fd = libc.syscall(298, attributes, 0, -1, -1, 0)
    assert fd >= 0
    return lambda: fd >= 0


def bpf_map() -> Probe:
    """A map of BPF."""
    attributes = (ctypes.c_uint * 18)(2, 4, 4, 1)
    fd = libc.syscall(321, 0, attributes, 72)
    assert fd >= 0
    return lambda: fd >= 0


def seccomp() -> Probe:
    """A filter of system calls in a child."""

    def restrict() -> None:
        libc.prctl(38, 1, 0, 0, 0)
        program = (ctypes.c_ulong * 1)(0x7FFF000000000006)
        fprog = (ctypes.c_ulong * 2)(1, ctypes.addressof(program))
        assert libc.prctl(22, 2, fprog) == 0

    pid = child(restrict)
    return lambda: Path(f"/proc/{pid}").exists()


def traced() -> Probe:
    """A child that is traced."""
    pid = child(lambda: None)
    libc.ptrace(0x4206, pid, 0, 0)
    return lambda: Path(f"/proc/{pid}").exists()


def network_namespace() -> Probe:
    """A child with a network of its own."""
    return own_namespace(0x40000000)


def user_namespace() -> Probe:
    """A child with users of its own."""
    return own_namespace(0x10000000)


def mount_namespace() -> Probe:
    """A child with mounts of its own."""
    return own_namespace(0x20000)


def ipc_namespace() -> Probe:
    """A child with shared memory of its own."""
    return own_namespace(0x8000000)


def uts_namespace() -> Probe:
    """A child with a host name of its own."""
    return own_namespace(0x4000000)


def cgroup_namespace() -> Probe:
    """A child with control groups of its own."""
    return own_namespace(0x2000000)


def pid_namespace() -> Probe:
    """A child whose children have pids of their own."""

    def act() -> None:
        libc.unshare(0x20000000)
        if os.fork() == 0:
            time.sleep(600)

    pid = child(act)
    return lambda: Path(f"/proc/{pid}").exists()


def shared_anonymous() -> Probe:
    """Shared memory without a name."""
    view = mmap.mmap(-1, 65536)
    view[:7] = b"content"
    return lambda: view[:7] == b"content"


def fifo() -> Probe:
    """A named pipe."""
    os.mkfifo(private + "/fifo")
    fd = os.open(private + "/fifo", os.O_RDWR)
    os.write(fd, b"x")
    return lambda: bool(select.select([fd], [], [], 0)[0])


def limits() -> Probe:
    """A changed resource limit."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
    return lambda: resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 1024)


def huge_memfd() -> Probe:
    """A memory file of huge pages."""
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    return lambda: fd >= 0


def packet_pipe() -> Probe:
    """A pipe of packets (O_DIRECT)."""
    _, write = os.pipe2(os.O_DIRECT)
    return lambda: bool(fcntl.fcntl(write, fcntl.F_GETFL) & os.O_DIRECT)


def multicast() -> Probe:
    """A member of a group."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group = socket.inet_aton("224.1.2.3") + socket.inet_aton("127.0.0.1")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    return lambda: sock.fileno() > 0 and "030201E0" in Path("/proc/net/igmp").read_text()


def multicast_v6() -> Probe:
    """A member of an IPv6 group."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    group = socket.inet_pton(socket.AF_INET6, "ff02::1234") + socket.if_nametoindex("lo").to_bytes(4, sys.byteorder)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    return lambda: sock.fileno() > 0 and "00001234" in Path("/proc/net/igmp6").read_text()


def deleted_program() -> Probe:
    """A child whose program was deleted, as by an update."""
    program = private + "/program"
    shutil.copy("/bin/sleep", program)
    running = subprocess.Popen([program, "600"])
    while Path(f"/proc/{running.pid}/exe").readlink() != Path(program):
        time.sleep(0.01)
    Path(program).unlink()
    return lambda: running.poll() is None


def other_user() -> Probe:
    """A child of another user."""

    def become() -> None:
        os.setgid(65534)
        os.setuid(65534)

    pid = child(become)
    return lambda: "Uid:\t65534" in Path(f"/proc/{pid}/status").read_text()


def stopped() -> Probe:
    """A child that was stopped."""
    pid = child(lambda: None)
    os.kill(pid, signal.SIGSTOP)
    return lambda: _within(5.0, lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())


def _within(seconds: float, is_so: Probe) -> bool:
    """Whether it becomes so in time: CRIU lets go of one process after the other, and may let go of this one first."""
    deadline = time.monotonic() + seconds
    while not (now := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return now


def zombie() -> Probe:
    """A child that ended and was not waited for."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return lambda: os.waitpid(pid, os.WNOHANG) == (pid, 7 << 8)


def sealed() -> Probe:
    """A sealed memory file."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    return lambda: fcntl.fcntl(fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW


def appended() -> Probe:
    """A file opened for appending, with a position."""
    fd = os.open(private + "/appended", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"12345")
    os.lseek(fd, 2, os.SEEK_SET)
    return lambda: os.lseek(fd, 0, os.SEEK_CUR) == 2 and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def flock() -> Probe:
    """A lock of a whole file."""
    fd = os.open(private + "/flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def probe() -> bool:
        other = os.open(private + "/flock", os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    return probe


def no_capabilities() -> Probe:
    """A child without capabilities that cannot gain any."""

    def drop() -> None:
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
        libc.prctl(38, 1, 0, 0, 0)

    pid = child(drop)

    def probe() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        return "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status

    return probe


def deleted_folder() -> Probe:
    """A child whose working directory was deleted."""
    folder = private + "/gone-folder"
    Path(folder).mkdir()
    pid = child(lambda: os.chdir(folder))
    Path(folder).rmdir()
    return lambda: str(Path(f"/proc/{pid}/cwd").readlink()).endswith("(deleted)")


def file_mask() -> Probe:
    """The mask of new files."""
    os.umask(0o137)

    def probe() -> bool:
        os.umask(mask := os.umask(0))
        return mask == 0o137

    return probe


def sent_descriptor() -> Probe:
    """A descriptor in flight through a socket."""
    one, other = socket.socketpair()
    read, write = os.pipe()
    os.write(write, b"x")
    socket.send_fds(one, [b"m"], [read])
    sleepers.append(one.detach())
    return lambda: os.read(socket.recv_fds(other, 1, 1)[1][0], 1) == b"x"


def made(kind: str) -> Probe | None:
    """The probe of an object; None if this machine has no such objects."""
    try:
        probe: Probe = globals()[kind]()
    except (OSError, AssertionError):
        return None
    return probe


def answer(probe: Probe | None) -> object:
    """The answer of a probe now."""
    try:
        return "none here" if probe is None else probe()
    except Exception as error:
        return repr(error)


if __name__ == "__main__":
    probes = {kind: made(kind) for kind in sys.argv[1].split(",")}
    listener = socket.create_server(("127.0.0.1", 8000))
    print("up", flush=True)
    while True:
        connection, _ = listener.accept()
        said = {kind: answer(probe) for kind, probe in probes.items()}
        connection.sendall(json.dumps(said).encode() + b"\n")
        connection.close()
