// Rows of a data set straight from the file's bytes. Internal to the hdf5_*.cpp files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora::hdf5 {

/// Where HDF5 keeps a one-dimensional data set as it lies in memory (one stretch of the file, this machine's byte
/// order, nothing compressed), a few hundred bytes of it are one pread of a microsecond; H5Dread and the selections
/// around it take five. For files that nobody writes meanwhile: HDF5 may hold back what it is told to write.
class PlainRows {
public:
    PlainRows() = default;
    /// @param type of the elements in memory. Other data sets are taken too; read() then says false.
    PlainRows(const Dataset& data, ElementType type);

    /// Rows [first_row, first_row + count) into `out`. False where they must be read through HDF5: the data set is
    /// stored in another way, or the bytes are not to be had, and HDF5 will say why.
    [[nodiscard]] bool read(std::int64_t first_row, void* out, std::int64_t count) const;

private:
    int file_ = -1;  ///< HDF5's own descriptor: open as long as the data set is
    std::int64_t begin_ = 0;
    std::int64_t rows_ = 0;
    std::int64_t row_bytes_ = 0;
};

}  // namespace hetlora::hdf5
