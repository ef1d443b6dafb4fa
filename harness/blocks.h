// The same measurement, several times: how far apart are runs of one and the same program?
#pragma once

#include <vector>

#include "harness/report.h"

namespace dsv2::harness {

/// One record of several measurements of the same row. Samples are pooled, comparisons counted together, memory is the
/// highest; noise_floor is the largest relative difference between the blocks' medians. Passed only if every block is.
/// `blocks` is not empty; one block is returned as it is.
Record pool_blocks(std::vector<Record> blocks);

}  // namespace dsv2::harness
