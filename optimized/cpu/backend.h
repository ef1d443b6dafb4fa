// The CPU backend as a row of the backend table.
#pragma once

#include "model/decoder.h"

namespace dsv2::cpu {

Backend backend();

}  // namespace dsv2::cpu
