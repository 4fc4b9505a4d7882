#pragma once

// The vector types of CUDA: same names, members, sizes and alignments.

#define QS_TWIN_VECTOR2(name, type, alignment) \
  struct alignas(alignment) name {             \
    type x, y;                                 \
  };                                           \
  inline name make_##name(type x, type y) { return name{x, y}; }
#define QS_TWIN_VECTOR3(name, type) \
  struct name {                     \
    type x, y, z;                   \
  };                                \
  inline name make_##name(type x, type y, type z) { return name{x, y, z}; }
#define QS_TWIN_VECTOR4(name, type, alignment) \
  struct alignas(alignment) name {             \
    type x, y, z, w;                           \
  };                                           \
  inline name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }

QS_TWIN_VECTOR2(char2, signed char, 2)
QS_TWIN_VECTOR4(char4, signed char, 4)
QS_TWIN_VECTOR2(uchar2, unsigned char, 2)
QS_TWIN_VECTOR4(uchar4, unsigned char, 4)
QS_TWIN_VECTOR2(short2, short, 4)
QS_TWIN_VECTOR4(short4, short, 8)
QS_TWIN_VECTOR2(ushort2, unsigned short, 4)
QS_TWIN_VECTOR4(ushort4, unsigned short, 8)
QS_TWIN_VECTOR2(int2, int, 8)
QS_TWIN_VECTOR3(int3, int)
QS_TWIN_VECTOR4(int4, int, 16)
QS_TWIN_VECTOR2(uint2, unsigned int, 8)
QS_TWIN_VECTOR3(uint3, unsigned int)
QS_TWIN_VECTOR4(uint4, unsigned int, 16)
QS_TWIN_VECTOR2(longlong2, long long, 16)
QS_TWIN_VECTOR2(ulonglong2, unsigned long long, 16)
QS_TWIN_VECTOR2(float2, float, 8)
QS_TWIN_VECTOR3(float3, float)
QS_TWIN_VECTOR4(float4, float, 16)
QS_TWIN_VECTOR2(double2, double, 16)

#undef QS_TWIN_VECTOR2
#undef QS_TWIN_VECTOR3
#undef QS_TWIN_VECTOR4

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_size = 1, unsigned int y_size = 1, unsigned int z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
