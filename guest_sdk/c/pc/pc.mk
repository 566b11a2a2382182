# Builds an image for a plain PC, bare metal. A guest's Makefile:
#
#     GUEST = hello
#     SRCS  = hello.c
#     include $(shell python3 -m guest_sdk.c --mk pc)
#
# BITS = 32 makes a multiboot image; 64 (the default) an ELF64 file with PVH's entry note: both start by `xenlike run` and `qemu -kernel`.
# SRCS: C and assembler (.S) sources. More knobs: CC, CFLAGS, BUILD (where objects go), GUEST_FP = 1 (the compiler may use SSE), PYTHON.

SDK    := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
BITS   ?= 64
BUILD  ?= build
SRCS   ?= $(wildcard *.c)
CFLAGS ?= -O2 -g -Wall -Wextra -Wno-unused-parameter

# -mno-red-zone: interrupts come on the current stack. -mgeneral-regs-only: their handlers save no FPU registers; files named *_fp.c are
# compiled without it, and nothing that a handler runs may call them.
PC_CFLAGS := -std=gnu11 -ffreestanding -nostdinc -isystem $(shell $(CC) -print-file-name=include) -I$(SDK)/include -m$(BITS) \
    -mno-red-zone -fno-pic -fno-pie -fno-stack-protector -fcf-protection=none -fno-strict-aliasing -fno-asynchronous-unwind-tables \
    -fno-common -ffunction-sections -fdata-sections $(if $(filter 64,$(BITS)),-march=x86-64 -mcmodel=small,-march=i686)
PC_LDFLAGS := -m$(BITS) -nostdlib -static -no-pie -Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,max-page-size=4096,-z,norelro \
    -Wl,-T,$(SDK)/pc$(BITS).lds

SDK_SRCS := start$(BITS).S $(notdir $(wildcard $(SDK)/src/*.c)) $(if $(filter 64,$(BITS)),entry64.S ap.S,entry32.S)
OBJS     := $(patsubst %,$(BUILD)/%.o,$(SRCS))
SDK_OBJS := $(patsubst %,$(BUILD)/sdk$(BITS)/%.o,$(SDK_SRCS))
general   = $(if $(findstring _fp.c,$<),,-mgeneral-regs-only)

.PHONY: all clean
all: $(GUEST)

$(GUEST): $(OBJS) $(SDK_OBJS) $(SDK)/pc$(BITS).lds
	$(CC) $(PC_LDFLAGS) -o $@ $(OBJS) $(SDK_OBJS)

$(BUILD)/sdk$(BITS)/%.o: $(SDK)/src/%
	@mkdir -p $(@D)
	$(CC) $(PC_CFLAGS) $(general) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/%.o: %
	@mkdir -p $(@D)
	$(CC) $(PC_CFLAGS) $(general) $(CFLAGS) -MMD -MP -c -o $@ $<

clean:
	rm -rf $(BUILD) $(GUEST)

-include $(OBJS:.o=.d) $(SDK_OBJS:.o=.d)
