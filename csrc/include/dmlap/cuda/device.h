#pragma once

#include <string>
#include <vector>

// What the CUDA runtime sees on this machine. Never throws: a machine without a driver is a normal
// machine for this extension.
namespace dmlap::cuda {

struct Device {
  std::string name;
  int major;
  int minor;
};

struct Machine {
  int runtime_version;  // 1000 * major + 10 * minor, of the runtime linked in
  int driver_version;   // newest CUDA the driver supports, same scale; 0 without a driver
  std::string error;    // why devices could not be listed; empty if they could
  std::vector<Device> devices;
};

Machine describe_machine();

// The runtime's name and text for an error code of a launcher.
std::string error_text(int code);

}  // namespace dmlap::cuda
