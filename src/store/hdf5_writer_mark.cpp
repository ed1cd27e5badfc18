// The mark "open for writing" in the superblock of HDF5's newer formats: see hetlora/store/run_log_salvage.hpp.
#include "hdf5_internal.hpp"
#include "hetlora/store/run_log_salvage.hpp"

namespace hetlora {

bool clear_stale_writer_mark(const std::filesystem::path& path) {
    using namespace hdf5::internal;
    be_quiet();
    const hdf5::Handle access(H5Pcreate(H5P_FILE_ACCESS), close_plist);
    const hbool_t clear = true;  // what HDF5's own tool h5clear does
    if (H5Pset(access.id(), "clear_status_flags", &clear) < 0 || H5Pset_file_locking(access.id(), false, true) < 0) {
        H5Eclear2(H5E_DEFAULT);
        return false;
    }
    hdf5::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, access.id()), close_file);
    const bool closed = file && file.close();
    H5Eclear2(H5E_DEFAULT);
    return closed;
}

}  // namespace hetlora
