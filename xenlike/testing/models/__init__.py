"""Executable specifications of what a PV guest can see.

Each module is one model, plain Python without I/O, that answers as the hypercalls do: an operation is a method, its
result is 0 or a negative errno, followed by the values the call would write back. They are written from the ABI's
description, never from the C core, so that a disagreement between the two is news.

    abi         numbers that the models share: errors and domain ids
    events      event channels (2-level), upcalls, poll and block
    frames      the frame table: owners, references, types, promotion and demotion of page tables
    pagetypes   the hypercalls over the frame table: mmu_update, mmuext_op, update_va_mapping, memory_op
    grants      grant tables, version 1, over the same frames
    store       xenstore: a dictionary of paths, permissions, watches, transactions

The state machines of `xenlike.testing.machines` drive a model and a hypervisor side by side; xenstore's stands with its test.
"""
