#pragma once

namespace quicksilver {

/// False starts every kernel after the end of the one before it, whatever its LaunchShape says: to find out whether a
/// fault comes of overlap. Of the whole process; to be set before anything is launched or recorded.
inline bool kernel_overlap = true;

}  // namespace quicksilver
