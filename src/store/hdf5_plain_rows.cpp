#include "hdf5_plain_rows.hpp"

#include <unistd.h>

#include "hdf5_internal.hpp"

namespace hetlora::hdf5 {

using namespace internal;

namespace {

/// The descriptor behind a data set's file, or -1 where HDF5 does not read it with plain system calls.
int descriptor_of(std::int64_t data) {
    const Handle file(H5Iget_file_id(data), close_file);
    if (!file) return -1;
    const Handle access(H5Fget_access_plist(file.id()), close_plist);
    if (!access || H5Pget_driver(access.id()) != H5FD_SEC2) return -1;
    void* descriptor = nullptr;
    if (H5Fget_vfd_handle(file.id(), access.id(), &descriptor) < 0 || descriptor == nullptr) return -1;
    return *static_cast<const int*>(descriptor);
}

/// True where the elements follow one another in one stretch of the file itself.
bool in_one_stretch(std::int64_t data) {
    const Handle plist(H5Dget_create_plist(data), close_plist);
    return plist && H5Pget_layout(plist.id()) == H5D_CONTIGUOUS && H5Pget_external_count(plist.id()) == 0;
}

/// True where the elements are stored as `type` is in memory.
bool stored_as(std::int64_t data, ElementType type) {
    const Handle stored(H5Dget_type(data), close_type);
    return stored && H5Tequal(stored.id(), memory_type(type)) > 0;
}

}  // namespace

PlainRows::PlainRows(const Dataset& data, ElementType type) {
    if (data.shape().size() != 1 || !in_one_stretch(data.id()) || !stored_as(data.id(), type)) return;
    const haddr_t begin = H5Dget_offset(data.id());
    if (begin == HADDR_UNDEF) return;  // nothing was ever written
    begin_ = static_cast<std::int64_t>(begin);
    rows_ = data.rows();
    row_bytes_ = static_cast<std::int64_t>(H5Tget_size(memory_type(type)));
    file_ = descriptor_of(data.id());
}

bool PlainRows::read(std::int64_t first_row, void* out, std::int64_t count) const {
    if (file_ < 0 || first_row < 0 || count < 0 || first_row + count > rows_) return false;
    const auto bytes = static_cast<std::size_t>(count * row_bytes_);
    return ::pread(file_, out, bytes, begin_ + first_row * row_bytes_) == static_cast<ssize_t>(bytes);
}

}  // namespace hetlora::hdf5
