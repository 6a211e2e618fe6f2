#pragma once

// Every layer.

#include "nn/activations.h"
#include "nn/attention.h"
#include "nn/conv.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/losses.h"
#include "nn/norm.h"
#include "nn/pool.h"
#include "nn/quantize.h"
#include "nn/recurrent.h"
#include "nn/sequential.h"
#include "nn/shape_layers.h"
#include "nn/swiglu.h"
