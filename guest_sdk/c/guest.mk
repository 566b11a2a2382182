# Builds a guest image. A guest's Makefile:
#
#     GUEST = hello
#     SRCS  = hello.c
#     include $(shell python3 -m guest_sdk.c --mk)
#
# SRCS: C and assembler (.S) sources. More knobs: CC, CFLAGS (optimisation and the guest's own options), BUILD (where objects go),
# SDK_BUILD (where the SDK's library goes; guests may share one), PYTHON.

SDK       := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
# Next to us in an installed package, in the hypervisor's sources in its repository.
XEN_ABI   ?= $(firstword $(wildcard $(SDK)/include/xen/xen.h $(SDK)/../../csrc/include/xen/xen.h))
BUILD     ?= build
SDK_BUILD ?= $(BUILD)/sdk
SRCS      ?= $(wildcard *.c)
CFLAGS    ?= -O2 -g -Wall -Wextra

# -mno-red-zone: Xen pushes exception frames on the current stack. -mgeneral-regs-only: an event handler saves no FPU registers.
# -mcmodel=kernel: the image lies in the top 2 GiB. -fno-jump-tables: user-mode code has no .rodata.
GUEST_CFLAGS := -std=gnu11 -ffreestanding -nostdinc -isystem $(shell $(CC) -print-file-name=include) -I$(SDK)/include \
    -I$(patsubst %/xen/xen.h,%,$(XEN_ABI)) -D__XEN_INTERFACE_VERSION__=0x00040e00 -m64 -march=x86-64 -mno-red-zone \
    -mgeneral-regs-only -mcmodel=kernel -fno-pic -fno-pie -fno-stack-protector -fcf-protection=none -fno-strict-aliasing \
    -fno-asynchronous-unwind-tables -fno-jump-tables -fno-common -ffunction-sections -fdata-sections
GUEST_LDFLAGS := -nostdlib -static -no-pie -Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,max-page-size=4096,-z,norelro \
    -Wl,-T,$(SDK)/guest.lds

OBJS     := $(patsubst %,$(BUILD)/%.o,$(SRCS))
SDK_SRCS := $(notdir $(wildcard $(SDK)/src/*.c $(SDK)/src/*.S))
SDK_OBJS := $(patsubst %,$(SDK_BUILD)/%.o,$(SDK_SRCS))
ARCHIVE  := $(SDK_BUILD)/libguest.a

.PHONY: all clean
all: $(GUEST)

# The library whole: its entry and notes are referred to by the linker script and the builder only.
$(GUEST): $(OBJS) $(ARCHIVE) $(SDK)/guest.lds
	$(CC) $(GUEST_LDFLAGS) -o $@ $(OBJS) -Wl,--whole-archive $(ARCHIVE) -Wl,--no-whole-archive

$(ARCHIVE): $(SDK_OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/%.o: %
	@mkdir -p $(@D)
	$(CC) $(GUEST_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(SDK_BUILD)/%.o: $(SDK)/src/%
	@mkdir -p $(@D)
	$(CC) $(GUEST_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

clean:
	rm -rf $(BUILD) $(GUEST)

-include $(OBJS:.o=.d) $(SDK_OBJS:.o=.d)
