#define BOXWRIGHT_ISA neon
#include "vector_kernels_body.h"
