"""State machines that drive a hypervisor and a model of it side by side, and compare after every step.

    driver        what a machine asks of the hypervisor under test: subclass `Driver` for yours
    layouts       argument structures and numbers of the guest ABI, as bytes
    base          what the machines share: scratch pages, running a list of choices, a Hypothesis machine
    memory        taking over and comparing a frame table, for grants and pagetypes
    model_driver  the models dressed up as a hypervisor, so that the machines can be tested themselves
    events        event channels; also runs without Hypothesis from choices drawn beforehand
    grants        grant tables
    pagetypes     page tables and memory reservations

A machine is made for a driver: `events.machine(make_driver)` returns a Hypothesis `RuleBasedStateMachine`.
"""
