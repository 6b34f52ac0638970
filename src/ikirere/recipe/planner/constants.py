"""Constants of the memory estimate, each with its origin; mixers and feed-forwards hold their own."""

from __future__ import annotations

MB = 2**20

# Bytes per element.
FP32, HALF, FP8 = 4, 2, 1

# Activations that autograd keeps per token and layer for the norms, in fp32 elements. Counted exactly with
# torch.autograd.graph.saved_tensors_hooks on ikirere.model.decoder over 24 shapes.
NORM_PER_HIDDEN = 4  # two norms: input, output
PER_TOKEN = 2  # reciprocal root of each norm

# The backward pass of one layer holds gradients of its widest intermediates in addition to what is kept:
# gate, up and product of the feed-forward at once.
BACKWARD_FEED_FORWARD = 3

# Cross-entropy goes through the head in chunks of this many bytes of fp32 logits, at least so many rows; the
# gradients of the hidden states and of the head are formed on the way. From ikirere.train.objective.
LOGITS_CHUNK_CPU, LOGITS_CHUNK_CARD, LOGITS_LEAST_ROWS = 1 << 24, 1 << 28, 256
# With autocast a chunk's logits and their gradient exist in half precision too.
LOGITS_CARD_COPIES = 2

# Resident size of a Python process that has imported torch with distributed checkpoints, pyarrow, tokenizers,
# transformers' configuration and rich, before any work: `resource.getrusage` on Linux, 331 MiB.
CPU_PROCESS = 331 * MB
# Fitted to the peaks of 13 short runs of ikirere.train.loop on two cores, 1 to 12 million weights, 1k to 8k
# tokens per step (largest error 10%): thread stacks and buffers; what the C library's heap loses between
# tensors that live for a step; copies of weights and moments while the optimiser works and a checkpoint is written.
CPU_WORKING = 37 * MB
CPU_HEAP = 1.19
CPU_STATE = 1.33
# A run goes through all stages in one process: what reading, tokenising and sharding leave allocated (start of
# training at 430 MiB), and what the heap grows by in the first hundred steps (50 to 100 MiB). Measured in the
# demo's pipeline at 4 and 16 rows a step, and in a run of a model of 0.3 million weights (largest error 5%).
CPU_PIPELINE = 175 * MB
# CUDA context, cuBLAS and NCCL workspaces of one process on a card.
CARD_CONTEXT = 1200 * MB
# Caching allocators round and split blocks; share added to weights, optimiser and activations on a card.
CARD_FRAGMENTATION = 0.05
# A plan fits where it leaves this share of the device free.
HEADROOM = 0.05
