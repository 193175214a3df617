{{/* name is what every object is called. */}}
{{- define "edge.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* selector is what tells this release's pods from all others; it never changes. */}}
{{- define "edge.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "edge.labels" -}}
{{ include "edge.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "edge.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* config is the edge's configuration file: what the chart decides and what the
operator says. The hostname is a variable because of $(POD_NAME). */}}
{{- define "edge.config" -}}
{{- $config := dict
  "data_dir" "/var/lib/wormhole"
  "http" ":80"
  "https" ":443"
  "admin" ":7080"
  "log_format" "json"
  "drain_delay" (printf "%ds" (int .Values.drain.delaySeconds))
  "drain_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds))
-}}
{{- with .Values.tls.mode }}{{ $_ := set $config "tls" . }}{{ end -}}
{{- with .Values.tls.acme.email }}{{ $_ := set $config "acme_email" . }}{{ end -}}
{{- with .Values.tls.acme.directory }}{{ $_ := set $config "acme_directory" . }}{{ end -}}
{{- with .Values.region }}{{ $_ := set $config "region" . }}{{ end -}}
{{- if eq .Values.tls.mode "files" -}}
{{- $_ := set $config "cert" (list "/etc/wormhole-tls/tls.crt") -}}
{{- $_ := set $config "key" (list "/etc/wormhole-tls/tls.key") -}}
{{- end -}}
{{- with .Values.sites }}{{ $_ := set $config "sites" . }}{{ end -}}
{{- toYaml (merge $config (deepCopy .Values.config)) -}}
{{- end -}}
