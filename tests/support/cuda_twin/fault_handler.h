#pragma once

namespace quicksilver::cuda_twin {

/// Makes a segmentation fault of a kernel on this OS thread (its own, or an overflow of its stack) say which kernel,
/// block and thread it was. Under AddressSanitizer that one reports.
void ReportFaultsOfKernels();

}  // namespace quicksilver::cuda_twin
