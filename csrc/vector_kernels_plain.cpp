#define BOXWRIGHT_ISA plain
#include "vector_kernels_body.h"
