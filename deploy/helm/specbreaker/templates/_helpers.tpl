{{- define "specbreaker.name" -}}
{{- if contains "specbreaker" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-specbreaker" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "specbreaker.selector" -}}
app.kubernetes.io/name: specbreaker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "specbreaker.labels" -}}
{{ include "specbreaker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
