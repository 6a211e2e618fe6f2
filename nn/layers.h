#pragma once

// Every layer.

#include "nn/activations.h"
#include "nn/conv.h"
#include "nn/linear.h"
#include "nn/quantize.h"
#include "nn/sequential.h"
