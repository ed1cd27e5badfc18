// What the hdf5_*.cpp files share: checking HDF5's return codes and mapping element types. Includes hdf5.h: never
// include this from a file that is not named hdf5_*.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <string>

#include "hetlora/base/error.hpp"
#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora::hdf5::internal {

static_assert(sizeof(hid_t) == sizeof(std::int64_t), "hetlora needs HDF5 1.10 or newer (64-bit identifiers)");

/// Switches off HDF5's printing of errors to stderr (for this thread's error stack).
void be_quiet() noexcept;

/// The reasons on HDF5's error stack, innermost last, and clears it.
[[nodiscard]] std::string error_stack_text();

enum class Doing { reading, writing };

/// Throws the error for a failed call: "cannot ACTION - WHERE: HDF5's reasons - advice".
[[noreturn]] void fail(Doing doing, const std::string& action, const std::string& where);

/// Passes a non-negative return value on, else fail().
template <typename Int>
Int check(Int result, Doing doing, const std::string& action, const std::string& where) {
    if (result < 0) fail(doing, action, where);
    return result;
}

/// The type in memory (native) and in the file (little-endian).
[[nodiscard]] hid_t memory_type(ElementType type);
[[nodiscard]] hid_t file_type(ElementType type);

inline int close_file(std::int64_t id) { return H5Fclose(id); }
inline int close_group(std::int64_t id) { return H5Gclose(id); }
inline int close_dataset(std::int64_t id) { return H5Dclose(id); }
inline int close_space(std::int64_t id) { return H5Sclose(id); }
inline int close_type(std::int64_t id) { return H5Tclose(id); }
inline int close_attribute(std::int64_t id) { return H5Aclose(id); }
inline int close_plist(std::int64_t id) { return H5Pclose(id); }

/// A fixed-length, zero-padded UTF-8 string type of `bytes` bytes (at least 1).
[[nodiscard]] Handle fixed_text_type(std::size_t bytes);

/// Text of fixed length up to its zero padding.
[[nodiscard]] std::string trim_padding(const char* data, std::size_t bytes);

}  // namespace hetlora::hdf5::internal
