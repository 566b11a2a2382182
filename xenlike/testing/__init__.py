"""Property testing of hypervisors and guests: models, state machines, strategies.

    models       executable specifications of what a guest can see
    machines     state machines that drive a hypervisor and a model side by side
    strategies   Hypothesis strategies for every hypercall, well-formed and hostile
    plugin       the pytest plugin: the fixture `xen` and what a failing test shows
"""
