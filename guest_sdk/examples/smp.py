"""Several vCPUs: each counts in its own task, the first waits for all. vcpus = 4"""

from guest_sdk import Future, Guest


class Smp(Guest):
    async def main(self):
        done = []
        for index in range(1, len(self.kernels)):
            future = Future()
            done.append(future)
            self.start_vcpu(index, lambda index=index, future=future: self.worker(index, future))
        for future in done:
            self.console.print(await future)

    async def worker(self, index, future):
        for _ in range(10):
            await self.compute(100_000)         # 0.1 ms of CPU time
        future.set(f"vcpu {index} has computed for 1 ms")
