"""Kernels that are forked from a process in which PyTorch is loaded: a notebook starts in a moment, not in five seconds
of work. For conftest.py, where there is `fork`; each notebook still has a process of its own.

The process that forks is this file, run as a program: it is told in lines of JSON what to start, and ends with the one
that it serves; kernels whose parent has ended end, too.
"""
import atexit, json, os, signal, subprocess, sys, time
from importlib.metadata import EntryPoint

LOADED = ("numpy", "torch", "torchvision", "matplotlib.pyplot", "PIL.Image", "IPython", "ipykernel.kernelapp",
          "matplotlib_inline.backend_inline", "fastcore.test", "nbdev.showdoc")

class Forks:
    "The process that forks, started when the first kernel is asked for."
    process = None

    def ask(self, **what):
        "Its answer, the process id of a kernel."
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            env=what["env"], text=True)
            atexit.register(self.process.stdin.close)
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

FORKS = Forks()

class Child:
    "A process that is no child of ours, as far as jupyter_client needs to know it."
    stdin = stdout = stderr = None
    def __init__(self, pid): self.pid, self.returncode = pid, None
    def poll(self):
        try: os.kill(self.pid, 0)
        except ProcessLookupError: self.returncode = 0
        return self.returncode
    def wait(self, timeout=None):
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None and time.monotonic() < end: time.sleep(0.02)
        return self.returncode
    def send_signal(self, number):
        try: os.kill(self.pid, number)
        except ProcessLookupError: pass
    def kill(self): self.send_signal(signal.SIGKILL)
    def terminate(self): self.send_signal(signal.SIGTERM)

def forked(spec):
    "A kernel specification whose kernels are forked."
    from jupyter_client.provisioning import KernelProvisionerFactory
    known = KernelProvisionerFactory.instance().provisioners
    known["forked"] = EntryPoint("forked", "tools.kernels:provisioner", "jupyter_client.kernel_provisioners")
    spec.metadata["kernel_provisioner"] = {"provisioner_name": "forked"}
    return spec

def __getattr__(name):
    if name != "provisioner": raise AttributeError(name)
    from jupyter_client.provisioning import LocalProvisioner
    class Forked(LocalProvisioner):
        async def launch_kernel(self, cmd, **kwargs):
            self.process = Child(FORKS.ask(argv=cmd[3:], cwd=kwargs.get("cwd"), env=dict(kwargs["env"])))
            self.pid = self.pgid = self.process.pid
            return self.connection_info
    return Forked

def become_kernel(argv, cwd, env):
    "In a child: run a kernel until it is told to stop."
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(2, 1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = ""
    sys.path[1:1] = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]
    from ipykernel.kernelapp import IPKernelApp
    argv = [*argv, f"--IPKernelApp.parent_handle={os.getppid()}"]
    sys.argv = ["ipykernel_launcher", *argv]
    IPKernelApp.launch_instance(argv=argv)

def main():
    from importlib import import_module
    for name in LOADED: import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever has ended is gone
    for line in sys.stdin:
        what = json.loads(line)
        if pid := os.fork(): print(pid, flush=True)
        else:
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            try: become_kernel(**what)
            finally: os._exit(0)

if __name__ == "__main__": main()
